//! `hafen image fsck`.

use std::process::ExitCode;

use hafen_rootfs::store::{Named, Report, Store};
use hafen_sys::file::boot_id;

use crate::cli::FsckArgs;
use crate::image::{pull_target, reference, unpack};
use crate::{Error, chain};

pub(crate) fn check(store: &Store, args: &FsckArgs) -> Result<ExitCode, Error> {
    let boot = boot_id()?;
    let mut report = store.check(&boot, args.repair)?;
    report.faults.iter().for_each(|fault| println!("{fault}"));
    if args.fetch && !report.faults.is_empty() {
        fetch_again(store, &report.incomplete, args, &boot);
        unpack_again(store, &report.incomplete, args, &boot)?;
        report = store.check(&boot, args.repair)?;
        report.faults.iter().for_each(|fault| println!("still {fault}"));
    }
    let Report { blobs, layers, names, faults, incomplete } = report;
    for named in &incomplete {
        println!("{}: take it in again with \"hafen image import\"", named.reference);
    }
    println!("{blobs} blobs, {layers} layers, {names} names: {} faults", faults.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// By the digest that a name means, whatever its registry means by it now. One that cannot be had does not keep the
/// others.
fn fetch_again(store: &Store, incomplete: &[Named], args: &FsckArgs, boot_id: &str) {
    for named in incomplete {
        match fetch_one_again(store, named, args, boot_id) {
            Ok(()) => println!("{}: fetched again", named.reference),
            Err(e) => eprintln!("hafen: {}: {}", named.reference, chain(&e)),
        }
    }
}

fn fetch_one_again(
    store: &Store,
    named: &Named,
    args: &FsckArgs,
    boot_id: &str,
) -> Result<(), Error> {
    let _guard = store.hold()?;
    let name = reference(&named.reference)?.at(named.target.digest.clone());
    pull_target(store, &name, &args.registry)?;
    unpack(store, &named.target, &named.reference, args.bounds.bounds(), boot_id)
}

/// The layers of all others: their blobs are here.
fn unpack_again(
    store: &Store,
    incomplete: &[Named],
    args: &FsckArgs,
    boot_id: &str,
) -> Result<(), Error> {
    let _guard = store.hold()?;
    for named in store.all_named()?.iter().filter(|named| !incomplete.contains(named)) {
        let bounds = args.bounds.bounds();
        if let Err(e) = unpack(store, &named.target, &named.reference, bounds, boot_id) {
            eprintln!("hafen: {}: {}", named.reference, chain(&e));
        }
    }
    Ok(())
}
