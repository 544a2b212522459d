//! Logins: passwords, tokens, who sees them, and what is said where they do not help.

use std::sync::atomic::{AtomicUsize, Ordering};

use banger_testkit::registry::{Certificates, Fault, PASSWORD, Request, TokenOptions, USER, When};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;

use super::*;

fn locked() -> Scene {
    let scene = Scene::with(&RegistryOptions { password: true, ..RegistryOptions::default() });
    scene.push(&TestImage::new().file("x", b"y").noise("n", 300_000, 5), "team/app:1");
    scene
}

fn auth_file(scene: &Scene, key: &str, password: &str) -> String {
    let auth = STANDARD.encode(format!("{USER}:{password}"));
    write(&scene.path("auth.json"), &json!({ "auths": { key: { "auth": auth } } }).to_string())
}

fn with_auth_file(scene: &Scene, file: String) -> Registry {
    let access = RegistryAccess { auth_file: Some(file), ..RegistryAccess::default() };
    connect_with(&surroundings(), &scene.proxy.reference("team/app:1"), &access)
}

#[test]
fn a_password_is_found_and_shown_only_when_it_is_asked_for() {
    let scene = locked();
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    let registry = with_auth_file(&scene, file);
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    let requests = scene.proxy.requests();
    let shown: Vec<bool> = requests.iter().map(|r| r.header("authorization").is_some()).collect();
    assert!(!shown[0] && shown[1..].iter().all(|shown| *shown), "{requests:?}");
}

#[test]
fn every_place_of_credentials_is_looked_at() {
    let scene = locked();
    let host = scene.proxy.address();
    let good = std::fs::read_to_string(auth_file(&scene, &host, PASSWORD)).expect("just written");
    let put = |path: &str| {
        let path = scene.path(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("ours");
        write(&path, &good)
    };
    let config = put("given.json");
    put("docker/config.json");
    put("home/.docker/config.json");
    put("config/containers/auth.json");
    put("run/containers/auth.json");
    let at = scene.proxy.reference("team/app:1");
    let text = |name: &str| Some(scene.path(name).display().to_string());
    let none = RegistryAccess::default;
    let homes: [(Option<&str>, Option<&str>, Option<&str>); 3] =
        [(Some("home"), None, None), (None, Some("config"), None), (None, None, Some("run"))];
    for (home, config_home, runtime_dir) in homes {
        let mut here = surroundings();
        here.home = home.map(|name| scene.path(name));
        here.config_home = config_home.map(|name| scene.path(name));
        here.runtime_dir = runtime_dir.map(|name| scene.path(name));
        assert!(connect_with(&here, &at, &none()).resolve().is_ok());
    }
    for access in [
        RegistryAccess { config: Some(config), ..none() },
        RegistryAccess { auth_file: text("given.json"), ..none() },
        RegistryAccess { docker_config: text("docker"), ..none() },
    ] {
        assert!(connect_with(&surroundings(), &at, &access).resolve().is_ok(), "{access:?}");
    }
}

#[test]
fn a_refusal_says_whether_somebody_was_named() {
    let scene = locked();
    let host = scene.proxy.address();
    let nobody = connect(&scene.proxy.reference("team/app:1"));
    let error = nobody.resolve().expect_err("no password");
    let want = format!("{host} refuses access to team/app: it is private, or is not there");
    assert!(error.to_string().starts_with(&want), "{error}");
    assert_eq!(error.code(), banger_api::ErrorCode::RegistryDenied);
    assert!(error.hint().is_some_and(|hint| hint.contains(&format!("docker login {host}"))));
    let wrong = with_auth_file(&scene, auth_file(&scene, &host, "wrong"));
    let error = wrong.resolve().expect_err("wrong password").to_string();
    let want = format!("{host} refuses access to team/app, with these credentials");
    assert!(error.starts_with(&want) && !error.contains("wrong"), "{error}");
    let other = with_auth_file(&scene, auth_file(&scene, &format!("{host}/other"), PASSWORD));
    assert!(other.resolve().is_err(), "that password is for another path");
    let broken = with_auth_file(&scene, write(&scene.path("auth.json"), "{"));
    let error = broken.resolve().expect_err("no auth file").to_string();
    assert!(error.starts_with("cannot understand "), "{error}");
}

/// Puts a token service before an open registry: what `/token` answers, and which token is good.
fn want_tokens(
    scene: &Scene,
    token: impl FnMut(&Request) -> Fault + Send + 'static,
    is_good: impl Fn(&str) -> bool + Send + 'static,
) {
    let mut token = token;
    let realm = format!("http://{}/token", scene.proxy.address());
    scene.proxy.rule(move |request| {
        if request.target.starts_with("/token") {
            return Some(token(request));
        }
        let shown = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
        let challenge = format!("Bearer realm=\"{realm}\",service=\"the registry\"");
        let refusal = Fault::status_with(401, "WWW-Authenticate", &challenge);
        (!shown.is_some_and(&is_good)).then_some(refusal)
    });
}

fn token(text: &str, expires_in: u64) -> Fault {
    let body = json!({ "token": text, "expires_in": expires_in }).to_string();
    Fault::body("application/json", body)
}

#[test]
fn a_token_is_fetched_once_and_shown_to_the_registry() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y").noise("n", 300_000, 5), "team/app:1");
    want_tokens(&scene, |_| token("t1", 300), |shown| shown == "t1");
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    let registry = with_auth_file(&scene, file);
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    let requests = scene.proxy.requests();
    let asked: Vec<_> = requests.iter().filter(|r| r.target.starts_with("/token")).collect();
    let [asked] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(
        asked.target,
        format!(
            "/token?scope=repository%3Ateam%2Fapp%3Apull&service=the%20registry&account={USER}"
        )
    );
    let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    assert_eq!(asked.header("authorization"), Some(&*basic));
    let to_registry = requests.iter().filter(|r| !r.target.starts_with("/token"));
    assert!(to_registry.filter_map(|r| r.header("authorization")).all(|text| text == "Bearer t1"));
}

/// A signed token for what is asked for, as docker-registry reads it.
fn web_token(certificates: &Certificates, request: &Request) -> String {
    let pem = |path: &Path| std::fs::read(path).expect("it is there");
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem(&certificates.key)).expect("a key");
    let certificate =
        CertificateDer::from_pem_slice(&pem(&certificates.certificate)).expect("a certificate");
    let random = SystemRandom::new();
    let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(kind, key.secret_pkcs8_der(), &random).expect("a key");
    let scope = request.target.split("scope=").nth(1).and_then(|rest| rest.split('&').next());
    let scope = scope.expect("a scope").replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let parts: Vec<&str> = scope.split(':').collect();
    let actions: Vec<&str> = parts[2].split(',').collect();
    let now = banger_host::clock::since_epoch().as_secs();
    let head = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&certificate)] });
    let claims = json!({
        "iss": "tests", "aud": "tests", "sub": "", "jti": "1",
        "exp": now + 300, "nbf": now - 10, "iat": now - 10,
        "access": [{ "type": parts[0], "name": parts[1], "actions": actions }],
    });
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let text = format!(
        "{}.{}",
        encode(head.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = key.sign(&random, text.as_bytes()).expect("signed");
    format!("{text}.{}", encode(signature.as_ref()))
}

#[test]
fn a_real_registry_takes_the_tokens_that_are_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::create(dir.path());
    let service = FaultProxy::start("127.0.0.1:1");
    let realm = format!("http://{}/token", service.address());
    let tokens = TokenOptions { realm, authority: certificates.authority.clone() };
    service.rule(move |request| Some(token(&web_token(&certificates, request), 300)));
    let tokens = Some(tokens);
    let scene = Scene::with(&RegistryOptions { tokens, ..RegistryOptions::default() });
    scene.push(&TestImage::new().file("x", b"y").noise("n", 300_000, 5), "team/app:1");
    service.forget();
    assert!(has_all(&scene.blobs, &scene.pull("team/app:1").expect("it comes")));
    let asked = service.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].target.ends_with("scope=repository%3Ateam%2Fapp%3Apull&service=tests"));
}

#[test]
fn strangers_get_tokens_too() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "team/app:1");
    want_tokens(&scene, |_| token("t1", 300), |shown| shown == "t1");
    assert!(scene.pull("team/app:1").is_ok());
    let asked = scene.proxy.requests().into_iter().find(|r| r.target.starts_with("/token"));
    assert_eq!(asked.expect("one").header("authorization"), None);
}

#[test]
fn a_token_that_ends_during_a_pull_is_renewed() {
    let scene = Scene::new();
    scene.push(&TestImage::new().noise("n", 300_000, 5).noise("m", 300_000, 6), "team/app:1");
    // Each token is good for two requests.
    let count = Arc::new(AtomicUsize::new(0));
    let uses = Arc::new(AtomicUsize::new(0));
    let (counted, used) = (Arc::clone(&count), Arc::clone(&uses));
    want_tokens(
        &scene,
        move |_| token(&format!("t{}", counted.fetch_add(1, Ordering::Relaxed)), 300),
        move |shown| {
            let number = used.load(Ordering::Relaxed) / 2;
            let is_good = shown == format!("t{number}");
            used.fetch_add(usize::from(is_good), Ordering::Relaxed);
            is_good
        },
    );
    assert!(has_all(&scene.blobs, &scene.pull("team/app:1").expect("it comes")));
    assert!(count.load(Ordering::Relaxed) >= 2);
    // One that says that it is over is not even shown.
    scene.proxy.heal();
    scene.proxy.forget();
    want_tokens(&scene, |_| token("short", 0), |shown| shown == "short");
    assert!(scene.pull("team/app:1").is_ok());
    let refused =
        |r: &&Request| r.header("authorization").is_none() && !r.target.starts_with("/token");
    assert_eq!(scene.proxy.requests().iter().filter(refused).count(), 1);
}

#[test]
fn an_identity_token_is_changed_into_others() {
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "team/app:1");
    let answer = json!({ "access_token": "t1" }).to_string();
    let answer = move |_: &Request| Fault::body("application/json", answer.clone());
    want_tokens(&scene, answer, |shown| shown == "t1");
    let auths = json!({ "auths": { scene.proxy.address(): { "identitytoken": "a+b&c" } } });
    let registry = with_auth_file(&scene, write(&scene.path("auth.json"), &auths.to_string()));
    assert!(registry.resolve().is_ok());
    let asked = scene.proxy.requests().into_iter().find(|r| r.method == "POST").expect("one");
    let want = "scope=repository%3Ateam%2Fapp%3Apull&service=the%20registry\
                &grant_type=refresh_token&client_id=banger&refresh_token=a%2Bb%26c";
    assert_eq!((&*asked.target, &*asked.form), ("/token", want));
}

#[test]
fn token_services_fail_too() {
    let cases: [(Fault, &str); 5] = [
        (Fault::status(401), "refuses access to team/app"),
        (Fault::status(404), "its token service: it answers 404"),
        (Fault::body("application/json", "{}"), "its answer has no token"),
        (Fault::body("application/json", "{\"token\":\"a\\nb\"}"), "its token is none"),
        (Fault::body("application/json", vec![b' '; 2 << 20]), "more than 1048576 bytes"),
    ];
    for (answer, want) in cases {
        let scene = Scene::new();
        want_tokens(&scene, move |_| answer.clone(), |_| false);
        let error = scene.registry("team/app:1").resolve().expect_err(want).to_string();
        assert!(error.contains(want), "{error}");
    }
    // What passes is waited for.
    let scene = Scene::new();
    scene.push(&TestImage::new().file("x", b"y"), "team/app:1");
    let mut failures = 2;
    let answer = move |_: &Request| {
        failures -= 1;
        if failures >= 0 { Fault::status(503) } else { token("t1", 300) }
    };
    want_tokens(&scene, answer, |shown| shown == "t1");
    assert!(scene.registry("team/app:1").resolve().is_ok());
    // A good token need not be enough.
    let scene = Scene::new();
    want_tokens(&scene, |_| token("t1", 300), |_| false);
    let error = scene.registry("team/app:1").resolve().expect_err("still refused");
    assert!(matches!(error, RegistryError::Denied { anonymous: true, .. }), "{error:?}");
    assert_eq!(scene.proxy.count("GET", "/token"), 1);
}

#[test]
fn a_password_goes_to_no_unsafe_token_service() {
    let scene = Scene::new();
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    for realm in ["ftp://x/token", "/token", "http://user:pass@127.0.0.1/token", "nonsense"] {
        scene.proxy.heal();
        let challenge = format!("Bearer realm=\"{realm}\"");
        let refusal = Fault::status_with(401, "WWW-Authenticate", &challenge);
        scene.proxy.fault(When::any("/v2/"), refusal);
        let error = with_auth_file(&scene, file.clone()).resolve().expect_err(realm).to_string();
        assert!(error.contains("a token service that is not safe"), "{error}");
    }
    assert_eq!(scene.proxy.count("GET", "/token"), 0);
}

#[test]
fn what_lets_us_in_is_not_shown_to_others() {
    let scene = locked();
    // The storage is another server, which takes no password at all.
    let open = Scene::new();
    let image = TestImage::new().file("x", b"y").noise("n", 300_000, 5);
    open.push(&image, "team/app:1");
    let there = open.proxy.address();
    scene.proxy.rule(move |request| {
        let is_known = request.header("authorization").is_some();
        let is_blob = request.method == "GET" && request.target.contains("/blobs/");
        let to = format!("http://{there}{}", request.target);
        (is_known && is_blob).then(|| Fault::status_with(307, "Location", &to))
    });
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    let registry = with_auth_file(&scene, file);
    assert!(has_all(&scene.blobs, &pull(&registry, &scene.blobs).expect("it comes")));
    let requests = open.proxy.requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|r| r.header("authorization").is_none()), "{requests:?}");
    // Nor to the registry again after others have sent us there.
    let back = format!("http://{}/v2/team/app/manifests/1", scene.proxy.address());
    open.proxy.fault(When::any("/back"), Fault::status_with(302, "Location", &back));
    let away = format!("http://{}/back", open.proxy.address());
    scene.proxy.rule(move |request| {
        let is_known = request.header("authorization").is_some();
        let redirect = Fault::status_with(302, "Location", &away);
        (is_known && request.target.ends_with("/manifests/1")).then_some(redirect)
    });
    scene.proxy.forget();
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    assert!(with_auth_file(&scene, file).resolve().is_err());
    let known = |r: &&Request| r.header("authorization").is_some();
    let shown: Vec<_> = scene.proxy.requests().into_iter().filter(|r| known(&r)).collect();
    assert_eq!(shown.len(), 4, "one for each attempt, none for the way back: {shown:?}");
}

#[test]
fn secrets_do_not_show() {
    let scene = locked();
    let file = auth_file(&scene, &scene.proxy.address(), PASSWORD);
    let registry = with_auth_file(&scene, file);
    registry.resolve().expect("it is there");
    let text = format!("{registry:?} {:?}", registry.inner.endpoints);
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    assert!(!text.contains(PASSWORD) && !text.contains(&encoded), "{text}");
}
