//! "`image build [-f Dockerfile] DIR` (through buildah, unprivileged; "writing a Dockerfile" is the
//! way to make custom images)"

use std::time::Duration;

use banger_e2e::{LocalImage, file};
use banger_testkit::Host;
use banger_testkit::fixtures::{Fixtures, TestRegistry};

/// Each step of a build starts several programs, and the layers are copied where overlays do not
/// work.
const BUILD: Duration = Duration::from_secs(240);

/// The last of the ten: built with a Dockerfile, pushed, and run from the registry by somebody who
/// has nothing of it.
#[test]
fn a_dockerfile_becomes_an_image_that_others_run() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let base = registry.reference("busybox:1");
    let dockerfile = format!(
        "FROM {base} AS making\n\
         ARG WORDS=none\n\
         RUN echo \"made with $WORDS\" > /made && mkdir /home/made && chown 1500:1600 /home/made\n\
         FROM {base}\n\
         COPY --from=making --chown=1500:1600 /made /srv/\n\
         COPY greeting /srv/\n\
         RUN chmod 4755 /bin/busybox && echo builder:x:2000:2000::/srv: >> /etc/passwd\n\
         ENV COLOUR=green\n\
         WORKDIR /srv\n\
         USER builder\n\
         ENTRYPOINT [\"sh\", \"-c\", \"cat made greeting; id -un; echo $COLOUR $0\"]\n\
         CMD [\"by-default\"]\n"
    );
    let context = file(&host, "src/greeting", "hello\n").parent().expect("it has one").to_owned();
    file(&host, "src/web.df", dockerfile);
    let context = context.to_string_lossy();
    let words = ["image", "build", "-t", "web", "-f", "web.df", "--build-arg", "WORDS=care"];
    let build = || host.banger([&words[..], &[&context]].concat()).timeout(BUILD);
    build().run().assert_ok().assert_stdout("web\n");
    let image = LocalImage::of(&host, "web");
    assert!(image.stat("/srv/made").contains("User:  1500"), "{}", image.stat("/srv/made"));
    assert!(image.stat("/bin/busybox").contains("Mode:  04755"));
    image.assert_clean();
    // What has not changed is the same image, and quickly.
    build().run().assert_ok();
    assert_eq!(LocalImage::of(&host, "web").digest(), image.digest());

    let theirs = TestRegistry::empty();
    let web = theirs.reference("team/web:1");
    host.banger(["image", "push", "web", &web]).run().assert_ok();
    host.banger(["image", "rm", "web"]).run().assert_ok();
    host.banger(["image", "prune", "--yes"]).run().assert_ok();
    let output = host.banger(["run", "--rm", &web]).run().assert_ok();
    output.assert_stdout("made with care\nhello\nbuilder\ngreen by-default\n");
    host.finish();
}

/// A step that fails says what it said, and nothing half-made stays visible.
#[test]
fn a_build_that_fails_leaves_nothing() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let base = registry.reference("busybox:1");
    let dockerfile = format!("FROM {base}\nRUN echo told you >&2; exit 7\n");
    let dockerfile = file(&host, "src/Dockerfile", dockerfile);
    let context = dockerfile.parent().expect("it has one").to_string_lossy().into_owned();
    let output = host.banger(["image", "build", &context]).timeout(BUILD).run().assert_code(125);
    assert!(output.stderr_text().contains("told you"), "{output}");
    host.banger(["image", "ls", "-q"]).run().assert_ok().assert_stdout("debian-bookworm\n");
    std::fs::remove_file(dockerfile).expect("ours");
    let output = host.banger(["image", "build", &context]).run().assert_code(125);
    assert!(output.stderr_text().contains("hint: "), "{output}");
    host.finish();
}
