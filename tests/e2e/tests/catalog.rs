//! "The catalog is a file in the repository, embedded … A user catalog in the config adds to it.
//! `image catalog` lists it with what is already local."

use banger_e2e::{LocalImage, configure, file};
use banger_testkit::Host;
use banger_testkit::fixtures::{Fixtures, LayerTar};
use serde_json::Value;

fn catalog(host: &Host) -> Vec<Value> {
    let listed = host.banger(["image", "catalog", "--format", "json"]).run().assert_ok();
    let lines = listed.stdout_text();
    lines.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn entry(host: &Host, name: &str) -> Value {
    let entries = catalog(host);
    entries.into_iter().find(|entry| entry["name"] == name).expect("it is in the catalog")
}

/// "At least debian-bookworm, debian-bookworm-dev …, alpine, ubuntu."
#[test]
fn the_catalog_has_what_it_should() {
    let host = Host::new();
    for (name, local, init) in [
        ("debian-bookworm", true, "agent"),
        ("debian-bookworm-dev", false, "system"),
        ("alpine", false, "agent"),
        ("ubuntu", false, "agent"),
    ] {
        let entry = entry(&host, name);
        assert_eq!((&entry["local"], &entry["init"]), (&local.into(), &init.into()), "{entry}");
        for key in ["description", "source", "kernel"] {
            assert!(entry[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {entry}");
        }
        assert!(entry["size_hint_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    }
    host.finish();
}

/// A user's own: an image of a registry, and one of a file with its digest.
#[test]
fn a_users_catalog_adds_to_it() {
    let host = Host::new();
    let registry = Fixtures::prepared().registry();
    let tar = LayerTar::new().file("from", "a file\n").finish();
    let digest = host.program("/usr/bin/sha256sum".as_ref(), ["-"]).stdin(tar.clone()).run();
    let digest = digest.assert_ok().stdout_text()[..64].to_owned();
    let tar = file(&host, "tree.tar", tar);
    let text = format!(
        "[[image]]\nname = \"team\"\ndescription = \"What the team uses\"\nsize_mib = 5\n\
         [image.oci]\nreference = \"{}\"\n\
         [[image]]\nname = \"system\"\ninit = \"system\"\n[image.oci]\nreference = \"{}\"\n\
         [[image]]\nname = \"filed\"\n[image.file]\nurl = \"file://{}\"\nsha256 = \"{digest}\"\n\
         [[image]]\nname = \"forged\"\n[image.file]\nurl = \"file://{}\"\nsha256 = \"{}\"\n",
        registry.reference("busybox:1"),
        registry.reference("busybox:1"),
        tar.display(),
        tar.display(),
        "0".repeat(64),
    );
    configure(&host, "catalog.toml", &text);
    let listed = host.banger(["image", "catalog"]).run().assert_ok();
    for word in ["team", "What the team uses", "(yours)", "debian-bookworm"] {
        listed.clone().assert_stdout_has(word);
    }
    assert_eq!(entry(&host, "team")["local"], false);
    let run = ["run", "--rm", "team", "echo", "of the team"];
    host.banger(run).run().assert_ok().assert_stdout("of the team\n");
    assert_eq!(entry(&host, "team")["local"], true);
    // The same files for another purpose.
    host.banger(["image", "pull", "system"]).run().assert_ok();
    assert_eq!(LocalImage::of(&host, "system").shown["init"], "system");
    assert_eq!(LocalImage::of(&host, "team").shown["init"], "agent");
    host.banger(["image", "pull", "filed"]).run().assert_ok();
    assert_eq!(LocalImage::of(&host, "filed").read("/from"), "a file\n");
    let forged = host.banger(["image", "pull", "forged"]).run().assert_code(125);
    assert!(forged.stderr_text().contains("sha256"), "{forged}");
    host.banger(["image", "show", "forged"]).run().assert_code(125);
    configure(&host, "catalog.toml", "[[image]]\nname = \"x\"\n");
    let output = host.banger(["image", "catalog"]).run().assert_code(125);
    assert!(output.stderr_text().contains("catalog.toml"), "{output}");
    host.finish();
}
