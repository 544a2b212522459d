//! Addresses, TLS, proxies, mirrors.

use std::collections::BTreeMap;
use std::net::TcpListener;

use banger_testkit::registry::{Certificates, Fault, When};

use super::*;

fn settings(scene: &Scene, text: &str) -> RegistryAccess {
    let config = write(&scene.path("registries.toml"), text);
    RegistryAccess { config: Some(config), ..RegistryAccess::default() }
}

fn tls_scene() -> (Scene, Certificates) {
    let dir = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::create(&dir.keep());
    let tls = Some(certificates.clone());
    (Scene::with(&RegistryOptions { tls, ..RegistryOptions::default() }), certificates)
}

#[test]
fn a_registry_with_its_own_authority_is_trusted_if_told_so() {
    let (scene, certificates) = tls_scene();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let port = scene.server.address().replace("127.0.0.1:", "");
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let at = format!("{host}/app:1");
        let error = pull(&connect(&at), &scene.blobs).expect_err("nobody trusts it");
        assert_eq!(
            error.to_string(),
            format!(
                "the registry {host} cannot be used: no authority that this host trusts has \
                 signed its certificate"
            )
        );
        assert!(error.hint().is_some_and(|hint| hint.contains(".ca = ")), "{error:?}");
        let ca = certificates.authority.display();
        let access = settings(&scene, &format!("[registry.\"{host}\"]\nca = \"{ca}\""));
        let registry = connect_with(&surroundings(), &at, &access);
        assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    }
    let parent = certificates.authority.parent().expect("a directory");
    std::fs::remove_dir_all(parent).expect("ours");
}

#[test]
fn a_certificate_is_good_for_its_names_only() {
    let (scene, certificates) = tls_scene();
    let host = scene.server.address().replace("127.0.0.1", "127.0.0.2");
    // The registry listens on 127.0.0.1 only, so somebody has to lead there.
    let listener = TcpListener::bind(&host).expect("a free port");
    let upstream = scene.server.address();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = std::net::TcpStream::connect(&upstream).expect("the registry listens");
            let (mut a, mut b) = (client.try_clone().expect("fd"), server.try_clone().expect("fd"));
            std::thread::spawn(move || std::io::copy(&mut a, &mut b));
            let (mut a, mut b) = (server, client);
            std::thread::spawn(move || std::io::copy(&mut a, &mut b));
        }
    });
    let ca = certificates.authority.display();
    let access = settings(&scene, &format!("[registry.\"{host}\"]\nca = \"{ca}\""));
    let registry = connect_with(&surroundings(), &format!("{host}/app:1"), &access);
    let error = registry.resolve().expect_err("not its name").to_string();
    assert!(error.contains("its certificate is not right"), "{error}");
    let parent = certificates.authority.parent().expect("a directory");
    std::fs::remove_dir_all(parent).expect("ours");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let scene = Scene::new();
    let at = reference(&scene.proxy.reference("app:1"));
    let error_of = |access: &RegistryAccess| {
        let purpose = (Purpose::Pull, &Cancel::new());
        let connected = Registry::connect_in(&surroundings(), &at, access, purpose);
        connected.expect_err("nonsense").to_string()
    };
    let nonsense = settings(&scene, "[registry.x]\nplain = 1");
    let file = scene.path("registries.toml").display().to_string();
    assert!(error_of(&nonsense).starts_with(&format!("cannot understand {file}:2: unknown field")));
    let host = scene.proxy.address();
    let missing = settings(&scene, &format!("[registry.\"{host}\"]\nca = \"missing.pem\""));
    let want = format!("cannot read {}", scene.path("missing.pem").display());
    assert_eq!(error_of(&missing), want);
    write(&scene.path("missing.pem"), "no certificate");
    assert!(error_of(&missing).contains("it has no certificate in PEM"));
    let config = Some(scene.path("nowhere.toml").display().to_string());
    let error = error_of(&RegistryAccess { config, ..RegistryAccess::default() });
    assert!(error.starts_with("cannot read "), "{error}");
}

#[test]
fn settings_lie_beside_the_configuration_too() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let mut here = surroundings();
    here.banger_config = Some(scene.path("."));
    write(&scene.path("registries.toml"), "registry.\"registry.invalid:80\".plain-http = true");
    here.proxies = BTreeMap::from([("http_proxy".to_owned(), proxy_url(&scene))]);
    let at = "registry.invalid:80/app:1";
    let registry = connect_with(&here, at, &RegistryAccess::default());
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
}

fn proxy_url(scene: &Scene) -> String {
    format!("http://user:pass%20word@{}", scene.proxy.address())
}

#[test]
fn plain_http_goes_through_a_proxy_with_whole_addresses() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let access = settings(&scene, "registry.\"registry.test:5000\".plain-http = true");
    let mut here = surroundings();
    here.proxies = BTreeMap::from([("HTTP_PROXY".to_owned(), proxy_url(&scene))]);
    let registry = connect_with(&here, "registry.test:5000/app:1", &access);
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    let requests = scene.proxy.requests();
    assert!(requests.iter().all(|r| r.header("host") == Some("registry.test:5000")));
    let password = Some("Basic dXNlcjpwYXNzIHdvcmQ=");
    assert!(requests.iter().all(|r| r.header("proxy-authorization") == password), "{requests:?}");
}

#[test]
fn tls_goes_through_a_proxy_unread() {
    let (scene, certificates) = tls_scene();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let ca = certificates.authority.display();
    let access = settings(&scene, &format!("registry.\"registry.test\".ca = \"{ca}\""));
    let mut here = surroundings();
    here.proxies = BTreeMap::from([("https_proxy".to_owned(), proxy_url(&scene))]);
    let registry = connect_with(&here, "registry.test/app:1", &access);
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    let requests = scene.proxy.requests();
    assert!(requests.iter().all(|r| r.method == "CONNECT"), "{requests:?}");
    assert!(requests.iter().all(|r| r.header("proxy-authorization").is_some()), "{requests:?}");
    let parent = certificates.authority.parent().expect("a directory");
    std::fs::remove_dir_all(parent).expect("ours");
}

#[test]
fn this_machine_is_not_reached_through_a_proxy() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "app:1");
    let mut here = surroundings();
    let nobody = "http://127.0.0.1:1".to_owned();
    here.proxies = ["http_proxy", "https_proxy", "all_proxy"]
        .map(|name| (name.to_owned(), nobody.clone()))
        .into();
    let at = scene.server.reference("app:1");
    let registry = connect_with(&here, &at, &RegistryAccess::default());
    assert!(registry.resolve().is_ok());
    let away = connect_with(&here, "registry.test/app:1", &RegistryAccess::default());
    let error = away.resolve().expect_err("nobody is there").to_string();
    assert!(error.contains("through the proxy 127.0.0.1:1"), "{error}");
    here.proxies.insert("no_proxy".to_owned(), "registry.test".to_owned());
    let away = connect_with(&here, "registry.test/app:1", &RegistryAccess::default());
    let error = away.resolve().expect_err("no such name").to_string();
    assert!(!error.contains("proxy"), "{error}");
}

#[test]
fn a_registry_that_is_not_there_is_said_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let mut patient = surroundings();
    patient.patience.first_wait = Duration::from_secs(60);
    for host in [&*address, "[::1]:1", "registry.invalid"] {
        let registry = connect_with(&patient, &format!("{host}/app:1"), &RegistryAccess::default());
        let error = registry.resolve().expect_err("nobody is there");
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains(host)), "{error:?}");
    }
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_where_it_fails() {
    let scene = Scene::new();
    let image = TestImage::new().noise("n", 300_000, 3);
    scene.push(&image, "app:1");
    scene.push(&image, "hub/app:1");
    scene.push(&TestImage::new().file("only", b"here"), "app:2");
    let mirror = FaultProxy::start(scene.server.address());
    let (own, address) = (scene.proxy.address(), mirror.address());
    let access = settings(&scene, &format!("registry.\"{own}\".mirror = \"{address}/hub\""));
    let get = |tag: &str| {
        let at = scene.proxy.reference(&format!("app:{tag}"));
        pull(&connect_with(&surroundings(), &at, &access), &scene.blobs)
    };
    let pulled = get("1").expect("it comes");
    assert!(has_all(&scene.blobs, &pulled));
    assert_eq!(scene.proxy.requests(), []);
    assert!(mirror.requests().iter().all(|r| r.target.starts_with("/v2/hub/app/")));
    // What it does not have, or has not whole, the registry gives.
    assert!(has_all(&scene.blobs, &get("2").expect("it comes")));
    let layer = &pulled.manifest.layers[0];
    scene.blobs.remove(&layer.digest).expect("it goes");
    scene.proxy.forget();
    let blob = format!("/blobs/{}", layer.digest);
    mirror.fault(When::get(&blob).once(), Fault::DropAfter(100_000));
    mirror.fault(When::get(&blob), Fault::status(500));
    assert!(has_all(&scene.blobs, &get("1").expect("it comes")));
    assert_eq!(scene.proxy.bytes(&blob), layer.size - 100_000, "only what was missing");
    // A mirror that is gone is no failure.
    drop(mirror);
    scene.blobs.remove(&layer.digest).expect("it goes");
    assert!(has_all(&scene.blobs, &get("1").expect("it comes")));
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let scene = Scene::new();
    let image = TestImage::new().noise("n", 300_000, 3);
    scene.push(&image, "app:1");
    let blob = format!("/blobs/{}", digest_of(&image.layers[0].bytes));
    let storage = FaultProxy::start(scene.server.address());
    let there = format!("http://{}/v2/app{blob}", storage.address());
    storage.fault(When::get(&blob).once(), Fault::DropAfter(100_000));
    // An address that has expired is not the end.
    storage.fault(When::get(&blob).once(), Fault::status(403));
    let redirect = Fault::status_with(307, "Location", &there);
    scene.proxy.fault(When::get(&blob), redirect);
    assert!(has_all(&scene.blobs, &scene.pull("app:1").expect("it comes")));
    assert_eq!((storage.count("GET", &blob), scene.proxy.count("GET", &blob)), (3, 3));
    assert_eq!(scene.proxy.bytes(&blob), 0);
    for (location, want) in [
        ("/v2/app/manifests/1", "from address to address"),
        ("file:///etc/passwd", "no address"),
        ("http://user:secret@127.0.0.1/", "a password"),
    ] {
        scene.proxy.heal();
        let redirect = Fault::status_with(301, "Location", location);
        scene.proxy.fault(When::any("/manifests/1"), redirect);
        let error = scene.pull("app:1").expect_err(location).to_string();
        assert!(error.contains(want), "{error}");
    }
}
