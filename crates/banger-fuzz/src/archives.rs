//! Files that somebody wants an image made of.

use banger_image::fuzz;

/// An archive of an image, or whatever else it may be.
pub(crate) fn archive(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, work) = (dir.path().join("image"), dir.path().join("work"));
    std::fs::write(&file, data).expect("there is space");
    std::fs::create_dir(&work).expect("there is space");
    fuzz::archive(&file, &work);
}
