//! `banger image show`.

use std::collections::BTreeMap;

use banger_api::image::{Image, ImageLayer};
use banger_core::size;

use crate::commands::vm_row::age;

/// All about an image.
pub fn fields(image: &Image) -> Vec<(&'static str, String)> {
    fields_at(image, banger_host::clock::now_ms())
}

fn fields_at(image: &Image, now_ms: u64) -> Vec<(&'static str, String)> {
    let config = &image.config;
    let mut fields = vec![
        ("Name", image.name.clone()),
        ("Digest", image.digest.clone()),
        ("Source", image.source.clone()),
        ("Built", format!("{} ago", age(image.created_at_ms, now_ms))),
        ("On disk", size::format(image.allocated_bytes)),
        ("Root disk", size::format(image.disk_bytes)),
        ("Kernel", image.kernel.clone().unwrap_or_else(|| "the default".to_owned())),
        ("Init", image.init.as_str().to_owned()),
    ];
    if let Some(oci) = &image.oci {
        fields.extend([
            ("Reference", oci.reference.clone().unwrap_or_default()),
            ("OCI digest", oci.digest.clone()),
            ("Manifest", oci.manifest_digest.clone()),
            ("Layers", layers(&oci.layers)),
        ]);
    }
    fields.extend([
        ("Entrypoint", words(&config.entrypoint)),
        ("Command", words(&config.cmd)),
        ("User", config.user.clone().unwrap_or_else(|| "root".to_owned())),
        ("Directory", config.workdir.clone().unwrap_or_default()),
        ("Environment", pairs(&config.env)),
        ("Ports", config.exposed_ports.join("\n")),
        ("Stop signal", config.stop_signal.clone().unwrap_or_default()),
        ("Labels", pairs(&config.labels)),
    ]);
    fields
}

fn layers(layers: &[ImageLayer]) -> String {
    let line = |layer: &ImageLayer| format!("{}  {}", layer.digest, size::format(layer.bytes));
    layers.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n")
}

/// Words as a shell would need them: in quotes where they are not plain.
fn words(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::image::list::tests::image;
    use crate::ui::render_fields;
    use banger_api::image::ImageConfig;

    #[test]
    fn everything_is_shown() {
        let words = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
        let mut image = image("team/app", 'a');
        image.config = ImageConfig {
            user: Some("app:app".to_owned()),
            env: [("PATH".to_owned(), "/bin".to_owned())].into(),
            workdir: Some("/srv".to_owned()),
            entrypoint: words("/bin/sh|-c"),
            cmd: words("echo it's; ls|"),
            exposed_ports: words("8080/tcp|9090/udp"),
            stop_signal: Some("SIGQUIT".to_owned()),
            labels: [("team".to_owned(), "a".to_owned())].into(),
        };
        let oci = serde_json::json!({
            "reference": "localhost:5000/team/app:1",
            "digest": "sha256:bb",
            "manifest_digest": "sha256:cc",
            "config_digest": "sha256:ff",
            "layers": [
                { "digest": "sha256:dd", "bytes": 3_400_000 },
                { "digest": "sha256:ee", "bytes": 120 },
            ],
        });
        image.oci = Some(serde_json::from_value(oci).expect("an origin"));
        insta::assert_snapshot!(render_fields(&fields_at(&image, 121_000)), @r"
        Name:         team/app
        Digest:       sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        Source:       docker.io/library/alpine:3.20
        Built:        2 minutes ago
        On disk:      90 MiB
        Root disk:    512 MiB
        Kernel:       the default
        Init:         agent
        Reference:    localhost:5000/team/app:1
        OCI digest:   sha256:bb
        Manifest:     sha256:cc
        Layers:       sha256:dd  3.2 MiB
                      sha256:ee  120 B
        Entrypoint:   /bin/sh -c
        Command:      'echo it'\''s; ls' ''
        User:         app:app
        Directory:    /srv
        Environment:  PATH=/bin
        Ports:        8080/tcp
                      9090/udp
        Stop signal:  SIGQUIT
        Labels:       team=a
        ");
    }
}
