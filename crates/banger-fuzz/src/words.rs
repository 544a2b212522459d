//! Words that people type, or that images and registries are called by.

use banger_core::filter::Filter;
use banger_core::id::Id;
use banger_core::reference::Reference;
use banger_core::{duration, name, signal, size};

/// Names of images in registries.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(reference) = Reference::parse(text) else { return };
    for written in [reference.canonical(), reference.familiar()] {
        let again = Reference::parse(&written).expect("it can be read back");
        assert_eq!(again.canonical(), reference.canonical(), "{written}");
        assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written:?} is shown");
    }
}

/// Durations, sizes, filters, names, ids, signals.
pub(crate) fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(duration) = duration::parse(text) {
        let _ = (duration::format(duration), duration::age(duration));
    }
    if let Ok(bytes) = size::parse(text) {
        let _ = size::format(bytes);
    }
    let _ = size::parse_memory_mib(text);
    let _ = Filter::parse(text);
    let _ = signal::parse(text);
    if let Some(id) = Id::parse(text) {
        assert_eq!(id.as_str(), text);
    }
    let _ = name::validate(text);
    if let Some(mended) = name::mend(text) {
        name::validate(&mended).expect("what was mended is good");
        assert_eq!(name::mend(&mended).as_deref(), Some(mended.as_str()), "and stays as it is");
    }
}
