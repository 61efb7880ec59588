//! The interface between the guest kernel and the host that runs and judges it.
//!
//! Both sides compile this crate: the guest kernel (the binary of this package) writes these
//! structures, the host reads them from raw guest memory. There is no code here that runs on one
//! side only.
#![no_std]

pub mod abi;
