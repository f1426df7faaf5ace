//! Tests of where profiles are found.

use super::location::*;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, ProfileRoot) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let root = ProfileRoot::directory(dir.path()).unwrap();
    (dir, root)
}

#[test]
fn aliases_are_tried_in_the_order_given() {
    let (_dir, root) = tree(&[
        ("compute/a100/org/m/mlp.csv", "first"),
        ("compute/a100-sxm/org/m/mlp.csv", "second"),
    ]);
    let find = |hosts: &[&str]| {
        let file = root.find(ProfileKind::Mlp, hosts, &["org/none", "org/m"]).unwrap();
        String::from_utf8(file.bytes.into_owned()).unwrap()
    };
    assert_eq!(find(&["a100", "a100-sxm"]), "first");
    assert_eq!(find(&["a100-sxm", "a100"]), "second");
    assert_eq!(find(&["nothing", "a100"]), "first");
}

#[test]
fn all_reduce_is_found_under_either_name() {
    let (_dir, root) = tree(&[("network/pair/allreduce.csv", "x")]);
    let file = root.find(ProfileKind::AllReduce, &["pair"], &[]).unwrap();
    assert!(file.name.ends_with("allreduce.csv"));
}

#[test]
fn an_absent_profile_is_named_with_what_there_is_instead() {
    let (dir, root) = tree(&[
        ("compute/a30/org/m/mlp.csv", ""),
        ("compute/a100/org/b/mlp.csv", ""),
        ("compute/a100/org/b/attention.csv", ""),
    ]);
    let error = root.find(ProfileKind::Mlp, &["h100", "hopper"], &["org/m"]).unwrap_err();
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "ROOT"),
        "no mlp.csv for org/m on h100 in ROOT (found there: a100 (org/b), a30 (org/m)); measure it \
         with `vidur profile mlp --models org/m`, or point --profiling-dir at a folder that has it"
    );
    let error = root.find(ProfileKind::AllReduce, &["pair"], &[]).unwrap_err();
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "ROOT"),
        "no all_reduce.csv for network device pair in ROOT (found there: none at all); measure it \
         with `vidur profile collectives`, or point --profiling-dir at a folder that has it"
    );
}

#[test]
fn a_directory_that_is_not_there_is_refused_at_once() {
    assert_eq!(
        ProfileRoot::directory("/no/such/folder").unwrap_err().to_string(),
        "profiling directory /no/such/folder does not exist; give an existing one with \
         --profiling-dir"
    );
}

#[test]
fn the_manifest_beside_a_profile_comes_with_it_and_a_broken_one_is_an_error() {
    let (_dir, root) = tree(&[
        ("compute/d/m/mlp.csv", "x"),
        ("compute/d/m/mlp.manifest.json", r#"{"device": "A30"}"#),
        ("compute/d/n/mlp.csv", "x"),
        ("compute/d/n/mlp.manifest.json", "{"),
    ]);
    let file = root.find(ProfileKind::Mlp, &["d"], &["m"]).unwrap();
    assert_eq!(file.manifest.unwrap()["device"], "A30");
    let error = root.find(ProfileKind::Mlp, &["d"], &["n"]).unwrap_err().to_string();
    assert!(error.contains("mlp.manifest.json: not JSON"), "{error}");
}

#[test]
fn the_digest_is_the_standard_one() {
    assert_eq!(
        ProfileFile::from_bytes("f", "abc").sha256(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn the_built_in_set_answers_like_a_folder() {
    let error = ProfileRoot::BuiltIn.find(ProfileKind::Mlp, &["no-such-sku"], &["m"]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no mlp.csv for m on no-such-sku in the built-in profiles (found there: ")
    );
}

#[test]
fn of_several_folders_the_first_that_has_a_profile_gives_it_and_its_manifest() {
    let (first, _) = tree(&[("compute/d/m/mlp.csv", "ours"), ("compute/d/device.yml", "x")]);
    let (second, _) = tree(&[
        ("compute/d/m/mlp.csv", "theirs"),
        ("compute/d/m/mlp.manifest.json", "{}"),
        ("compute/d/m/attention.csv", "theirs"),
    ]);
    let paths = std::env::join_paths([first.path(), second.path()]).unwrap();
    let root = ProfileRoot::directory(paths).unwrap();
    let mlp = root.find(ProfileKind::Mlp, &["d"], &["m"]).unwrap();
    assert_eq!((&*mlp.bytes, mlp.manifest), (&b"ours"[..], None));
    assert_eq!(&*root.find(ProfileKind::Attention, &["d"], &["m"]).unwrap().bytes, b"theirs");
    assert!(root.device_file("d").unwrap().is_some());
    let error = root.find(ProfileKind::Mlp, &["d"], &["none"]).unwrap_err().to_string();
    assert!(error.contains(" and ") && error.contains("found there: d (m))"), "{error}");
    let one_missing = std::env::join_paths([first.path(), "/no/such/folder".as_ref()]).unwrap();
    assert!(ProfileRoot::directory(one_missing).is_err());
}
