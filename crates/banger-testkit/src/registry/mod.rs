//! A real registry on this machine's loopback, images to put into it, and a proxy in front of it that
//! misbehaves on demand.
//!
//! ```no_run
//! use banger_testkit::registry::{Fault, FaultProxy, OciLayout, RegistryServer, TestImage, When};
//!
//! let dir = tempfile::tempdir().expect("a directory");
//! let registry = RegistryServer::start(dir.path());
//! let layout = OciLayout::create(&dir.path().join("layout"));
//! let image = layout.add_image(&TestImage::new().file("etc/greeting", b"hello"));
//! layout.push(&image, &registry, "team/app:1");
//! let proxy = FaultProxy::start(registry.address());
//! proxy.fault(When::get("/blobs/").once(), Fault::DropAfter(100));
//! // … pull from proxy.address(), then:
//! assert_eq!(proxy.count("GET", "/manifests/"), 1);
//! ```

mod certificates;
mod faults;
mod http;
mod image;
mod layout;
mod proxy;
mod server;

pub use certificates::Certificates;
pub use faults::{Fault, When};
pub use http::Request;
pub use image::{Layer, TestImage, noise};
pub use layout::OciLayout;
pub use proxy::FaultProxy;
pub use server::{PASSWORD, RegistryOptions, RegistryServer, TokenOptions, USER};
