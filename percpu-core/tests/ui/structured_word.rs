//! What has the operations is not lent out by reference: it would change behind the reference.

use percpu_core::var::{DoubleWord, RawPtr, Structured};

struct Mine;

impl Structured for u64 {} //~ E0117
impl Structured for RawPtr<Mine> {} //~ E0117
impl Structured for DoubleWord {} //~ E0117
impl<T: percpu_core::var::Word> Structured for T {} //~ E0210

fn main() {}
