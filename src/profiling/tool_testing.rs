//! Stand-ins for tools.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Puts a shell script called `name` into `folder`.
pub fn script(folder: &Path, name: &str, body: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
