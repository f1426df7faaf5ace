//! Where the things that a config names are found.

use crate::dataset::location::{ProfileKind, ProfileRoot};
use crate::spec::catalog::Catalog;
use crate::spec::device::DeviceSku;
use crate::spec::model::ModelSpec;
use crate::yaml;
use std::path::Path;

/// Why a config cannot run: one line that names the field and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ResolveError(pub String);

/// Names the field that an error belongs to.
pub(super) fn at<E: std::fmt::Display>(field: &str) -> impl FnOnce(E) -> ResolveError + '_ {
    move |e| ResolveError(format!("{field}: {e}"))
}

/// Where profiles are read from: the folder asked for, else `data/profiling` if it has this model
/// on this device, else the profiles compiled into the program.
///
/// # Errors
/// When the folder asked for does not exist.
pub fn profile_root(
    asked: Option<&Path>,
    sku: &str,
    model: &ModelSpec,
) -> Result<ProfileRoot, ResolveError> {
    if let Some(dir) = asked {
        return ProfileRoot::directory(dir).map_err(at("profiling_dir"));
    }
    let local = Path::new("data/profiling");
    if local.is_dir() {
        let root = ProfileRoot::Directory(local.into());
        if root.find(ProfileKind::Mlp, &[sku], &model.names()).is_ok() {
            return Ok(root);
        }
    }
    Ok(ProfileRoot::BuiltIn)
}

/// The device that is described beside its profiles, else the one of the catalogue.
///
/// # Errors
/// When neither knows it, or a file does not parse.
pub fn device(sku: &str, catalog: &Catalog, root: &ProfileRoot) -> Result<DeviceSku, ResolveError> {
    let field = "cluster.sku";
    if let Some(file) = root.device_file(sku).map_err(at(field))? {
        let text = std::str::from_utf8(&file.bytes).map_err(at(&file.name))?;
        let device: DeviceSku = yaml::from_str(text, &file.name).map_err(at(field))?;
        device.check().map_err(at(&file.name))?;
        return Ok(device);
    }
    catalog.device(sku).map_err(at(field))
}

/// How the devices of the largest node of the catalogue with `device` are wired; of several, the first
/// by name. `None` where no node has it.
///
/// # Errors
/// When a file of the catalogue is broken.
pub fn wiring(device: &DeviceSku, catalog: &Catalog) -> Result<Option<String>, ResolveError> {
    let nodes = catalog.nodes().map_err(at("cluster.network_device"))?;
    let mut nodes: Vec<_> = nodes.into_iter().filter(|node| node.device == device.name).collect();
    nodes.sort_by(|a, b| b.num_devices.cmp(&a.num_devices).then(a.name.cmp(&b.name)));
    Ok(nodes.into_iter().find_map(|node| node.network_device))
}
