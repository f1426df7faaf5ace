//! Rebuilds the program when a file that is compiled into it changes: `include_dir!` does not tell
//! cargo which files it read.

fn main() {
    println!("cargo::rerun-if-changed=data");
}
