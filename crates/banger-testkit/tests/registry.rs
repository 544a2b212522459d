//! The registry, the images and the proxy are what they say.

use banger_testkit::registry::{
    Certificates, Fault, FaultProxy, OciLayout, RegistryOptions, RegistryServer, TestImage, When,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn an_image_goes_into_the_registry_and_comes_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let registry = RegistryServer::start(dir.path());
    let layout = OciLayout::create(&dir.path().join("layout"));
    let image = layout.add_image(&TestImage::new().file("etc/x", b"y").noise("n", 9000, 1));
    layout.push(&image, &registry, "team/app:1");
    let bytes = registry.get("/v2/team/app/manifests/1", MANIFEST).expect("it is there");
    assert_eq!(bytes.len() as u64, image["size"].as_u64().expect("a number"));
    assert_eq!(registry.get("/v2/team/app/manifests/2", MANIFEST), None);
    let digest = registry.put_blob("team/app", b"some bytes");
    assert_eq!(std::fs::read(registry.blob_file(&digest)).expect("it is stored"), b"some bytes");
}

#[test]
fn the_proxy_passes_on_and_counts_and_misbehaves_when_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let registry = RegistryServer::start(dir.path());
    let digest = registry.put_blob("x", &[7; 5000]);
    let path = format!("/v2/x/blobs/{digest}");
    let proxy = FaultProxy::start(registry.address());
    proxy.fault(When::get("/blobs/").after(1).once(), Fault::status(500));
    proxy.fault(When::get("/blobs/").after(1).once(), Fault::Truncate(10));
    let through = FaultProxy::start(proxy.address());
    let get = |proxy: &FaultProxy| fetch(&proxy.address(), &path);
    let whole = get(&through);
    assert_eq!(whole.len(), 5000);
    assert_eq!(get(&through), "");
    assert_eq!(get(&through).len(), 10);
    assert_eq!(get(&through), whole);
    assert_eq!((proxy.count("GET", "/blobs/"), proxy.count("PUT", "")), (4, 0));
    assert_eq!(proxy.bytes("/blobs/"), 10_010);
    proxy.forget();
    assert_eq!(proxy.requests(), []);
}

/// The body of what curl would get.
fn fetch(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("the proxy listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

#[test]
fn a_registry_can_want_a_password_and_speak_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::create(&dir.path().join("certificates"));
    let options =
        RegistryOptions { password: true, tls: Some(certificates), ..RegistryOptions::default() };
    let registry = RegistryServer::start_with(dir.path(), &options);
    let layout = OciLayout::create(&dir.path().join("layout"));
    let image = layout.add_image(&TestImage::new().file("etc/x", b"y"));
    layout.push(&image, &registry, "app:1");
}
