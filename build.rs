<<<<<<< HEAD
//! Rebuilds when a migration is added: they are embedded at compile time.
=======
//! Builds anew when a migration changes: they are embedded.
>>>>>>> store

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
