//! What buildah is asked, and real builds where it is installed.

use super::*;
use crate::ui::Ui;

fn place(tmp: &Path) -> Place {
    Place::begin(tmp).expect("writable").place
}

fn settings(place: &Place) -> Settings {
    Settings {
        containers: place.work.join("containers.conf"),
        registries: Some(place.work.join("registries.conf")),
        policy: None,
        runtime: place.work.join("runtime"),
    }
}

/// The words one option a line, with short names for the build's directories.
fn line(words: &[OsString], place: &Place) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    words
        .join(" ")
        .replace(" --", "\n--")
        .replace(&*place.work.to_string_lossy(), "WORK")
        .replace(&*place.cache.to_string_lossy(), "CACHE")
}

fn recipe(context: &Path) -> Recipe {
    Recipe {
        context: context.to_owned(),
        file: None,
        args: Vec::new(),
        target: None,
        no_cache: false,
    }
}

#[test]
fn state_is_in_our_place_only() {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let place = place(tmp.path());
    let mut settings = settings(&place);
    let words = global(&place, &settings, Driver::Overlay);
    insta::assert_snapshot!(line(&words, &place), @"
    --root CACHE/overlay
    --runroot WORK/run
    --storage-driver overlay
    --short-name-alias-conf CACHE/short-names.conf
    --registries-conf WORK/registries.conf
    ");
    settings.registries = None;
    let words = global(&place, &settings, Driver::Vfs);
    insta::assert_snapshot!(line(&words, &place), @"
    --root CACHE/vfs
    --runroot WORK/run
    --storage-driver vfs
    --short-name-alias-conf CACHE/short-names.conf
    ");
}

#[test]
fn a_build_is_asked_for() {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let place = place(tmp.path());
    let mut settings = settings(&place);
    let plain = bud(&place, &settings, &recipe(Path::new("/src")), None);
    insta::assert_snapshot!(line(&plain, &place), @"
    bud
    --isolation chroot
    --format docker
    --layers
    --identity-label=false
    --iidfile WORK/image-id
    -- /src
    ");
    settings.policy = Some(place.work.join("policy.json"));
    let full = Recipe {
        args: vec!["VERSION=2".to_owned(), "TOKEN".to_owned()],
        target: Some("web".to_owned()),
        no_cache: true,
        ..recipe(Path::new("/-src"))
    };
    let full = bud(&place, &settings, &full, Some(Path::new("/web.df")));
    insta::assert_snapshot!(line(&full, &place), @"
    bud
    --isolation chroot
    --signature-policy WORK/policy.json
    --format docker
    --layers
    --identity-label=false
    --iidfile WORK/image-id
    --no-cache
    --file /web.df
    --build-arg VERSION=2
    --build-arg TOKEN
    --target web
    -- /-src
    ");
    insta::assert_snapshot!(line(&push(&settings, "sha256:aa"), &place), @"
    push
    --signature-policy WORK/policy.json
    --quiet sha256:aa oci:layout:latest
    ");
}

#[test]
fn a_missing_dockerfile_is_hinted_at() {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let bare = recipe(tmp.path());
    let want = format!("write {}/Dockerfile, or name one with -f", tmp.path().display());
    assert_eq!(hint(&bare), Some(want));
    let named = Recipe { file: Some(Dockerfile::Path("/x".to_owned())), ..bare.clone() };
    assert_eq!(hint(&named), None);
    std::fs::write(tmp.path().join("Containerfile"), "FROM scratch\n").expect("writable");
    assert_eq!(hint(&bare), None);
}

/// Builds for real; None where that is not possible. Layers are kept as this host can, or as any.
async fn built(
    tmp: &Path,
    dockerfile: &str,
    driver: Option<Driver>,
) -> Option<(Builder, Result<String, Failure>)> {
    if check_installed().is_err() {
        eprintln!("skipped: buildah is not installed");
        return None;
    }
    let context = tmp.join("context");
    std::fs::create_dir_all(&context).expect("writable");
    std::fs::write(context.join("Dockerfile"), dockerfile).expect("writable");
    std::fs::write(context.join("file"), "contents").expect("writable");
    let (_keep, signals) = mpsc::unbounded_channel();
    let mut interrupts = Interrupts::from_channel(signals);
    let ui = Ui::silent();
    let shown = &mut (&ui, &mut interrupts);
    let builder = match Builder::begin(tmp, shown).await {
        Ok(builder) => Builder { driver: driver.unwrap_or(builder.driver), ..builder },
        Err(Failure::Problem(problem)) if problem.code == ErrorCode::HostNotPermitted => {
            eprintln!("skipped: {problem}");
            return None;
        }
        Err(failure) => panic!("{failure:?}"),
    };
    let layout = builder.build(&recipe(&context), shown).await;
    Some((builder, layout))
}

/// Not all of it belongs to us.
fn remove_cache(tmp: &Path) {
    let tool = Tool::new("rm").arg("-rf").arg(tmp.join("cache")).isolation(Isolation::Root);
    tool.run(&Cancel::new()).expect("it can be removed");
}

#[tokio::test]
async fn a_real_build_makes_an_oci_layout_and_leaves_only_its_cache() {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let dockerfile = "FROM scratch\nCOPY file /file\nENV A=b\nCMD [\"/file\"]\n";
    for driver in [None, Some(Driver::Vfs)] {
        let Some((builder, layout)) = built(tmp.path(), dockerfile, driver).await else { return };
        let layout = PathBuf::from(layout.expect("it is built"));
        let index = std::fs::read_to_string(layout.join("index.json")).expect("an OCI layout");
        assert!(index.contains("application/vnd.oci.image.manifest.v1+json"), "{index}");
        let (work, layers) = (builder.place.work.clone(), builder.driver.as_str());
        let layers = builder.place.cache.join(layers);
        builder.end().await;
        assert!(!work.exists());
        assert!(layers.exists());
    }
    remove_cache(tmp.path());
}

#[tokio::test]
async fn a_build_that_fails_says_why() {
    let tmp = tempfile::tempdir().expect("a temporary directory");
    let dockerfile = "FROM scratch\nCOPY nothing-like-that /file\n";
    let Some((builder, layout)) = built(tmp.path(), dockerfile, None).await else { return };
    let Err(Failure::Problem(problem)) = layout else { panic!("{layout:?}") };
    assert_eq!(problem.code, ErrorCode::PullFailed);
    assert!(problem.to_string().contains("nothing-like-that"), "{problem}");
    assert_eq!(problem.hint, None);
    builder.end().await;
    remove_cache(tmp.path());
}
