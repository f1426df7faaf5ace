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
        let has = |kind| root.has(kind, &[sku], &model.names());
        if has(ProfileKind::Mlp) || has(ProfileKind::Graph) {
            return Ok(root);
        }
    }
    Ok(ProfileRoot::BuiltIn)
}

/// The device that is described beside its profiles, else the one of the catalogue: what one
/// tensor-parallel worker runs on, see [`DeviceSku::worker`].
///
/// # Errors
/// When neither knows it, or a file does not parse.
pub fn device(sku: &str, catalog: &Catalog, root: &ProfileRoot) -> Result<DeviceSku, ResolveError> {
    let field = "cluster.sku";
    if let Some(file) = root.device_file(sku).map_err(at(field))? {
        let text = std::str::from_utf8(&file.bytes).map_err(at(&file.name))?;
        let device: DeviceSku = yaml::from_str(text, &file.name).map_err(at(field))?;
        device.check().map_err(at(&file.name))?;
        return Ok(device.worker());
    }
    catalog.device(sku).map(DeviceSku::worker).map_err(at(field))
}

/// The folder of the network profiles of one chip's cores among themselves.
pub fn chip(sku: &str) -> String {
    format!("{sku}_chip")
}

/// How `workers` workers of `sku` are wired when the config does not say: as the cores of one chip
/// where they fit on one and that was profiled, else as in the largest node.
///
/// # Errors
/// When a file of the catalogue is broken.
pub fn wiring_of(
    workers: u32,
    device: &DeviceSku,
    catalog: &Catalog,
    root: &ProfileRoot,
) -> Result<Option<String>, ResolveError> {
    let chip = chip(&device.name);
    let cores = catalog.device(&device.name).map_or(1, |whole| whole.num_cores());
    if workers <= cores && root.has(ProfileKind::AllReduce, &[&chip], &[]) {
        return Ok(Some(chip));
    }
    wiring(device, catalog)
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
