//! The table of edges in an image: where each one's flag is, and where it leads.

use object::{Object, ObjectSection, ObjectSegment};
use percpu_guest::abi;

use super::covered::Covered;
use crate::memory::{GuestMem, Wild};

/// The compiler's name for the section of flags, a byte an edge.
pub(crate) const FLAGS: &str = "__sancov_bools";
/// Its name for the table of places, a [`Place`] an edge, in the same order.
const PLACES: &str = "__sancov_pcs";

/// Bytes of an entry of the table: an address, and a word of which bit 0 says "entry of a function".
const PLACE: usize = 16;

/// All edges of an image, numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edges {
    /// Guest-physical address of the first flag.
    flags: u64,
    /// Where each edge leads: the first instruction of a basic block.
    places: Vec<u64>,
    build: u64,
}

impl Edges {
    /// Finds the edges of an image; `None` in one that was not instrumented.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the sections.
    pub(crate) fn find(elf: &object::File<'_>) -> Result<Option<Self>, String> {
        let (flags, places) = match (elf.section_by_name(FLAGS), elf.section_by_name(PLACES)) {
            (None, None) => return Ok(None),
            (Some(flags), Some(places)) => (flags, places),
            (Some(_), None) => return Err(format!("it has a section {FLAGS}, but no {PLACES}")),
            (None, Some(_)) => return Err(format!("it has a section {PLACES}, but no {FLAGS}")),
        };
        let table = places.data().map_err(|_| format!("its section {PLACES} is cut off"))?;
        let (entries, rest) = table.as_chunks::<PLACE>();
        if !rest.is_empty() {
            return Err(format!(
                "its section {PLACES} has {} bytes, which are not entries of {PLACE}",
                table.len()
            ));
        }
        if entries.len() as u64 != flags.size() {
            return Err(format!(
                "its section {FLAGS} has {} flags, its section {PLACES} {} places",
                flags.size(),
                entries.len()
            ));
        }
        let loaded = elf.segments().any(|segment| {
            segment.address() >= abi::IMAGE
                && within(segment.address(), segment.size(), flags.address(), flags.size())
        });
        if !loaded {
            return Err(format!("its section {FLAGS} at {:#x} is not loaded", flags.address()));
        }
        let code: Vec<_> = elf
            .sections()
            .filter(|section| section.kind() == object::SectionKind::Text)
            .map(|section| (section.address(), section.size()))
            .collect();
        let mut build = Hash::new();
        let mut addresses = Vec::with_capacity(entries.len());
        for entry in entries {
            let (words, _) = entry.as_chunks::<8>();
            let place = u64::from_le_bytes(words[0]);
            if !code.iter().any(|&(start, size)| within(start, size, place, 1)) {
                return Err(format!("its section {PLACES} leads to {place:#x}, which is no code"));
            }
            words.iter().for_each(|word| build.mix(u64::from_le_bytes(*word)));
            addresses.push(place);
        }
        Ok(Some(Self { flags: flags.address(), places: addresses, build: build.0 }))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where edge `n` leads, for each n.
    pub fn places(&self) -> &[u64] {
        &self.places
    }

    /// A number for this table. Images of the same number have the same edges.
    pub fn build(&self) -> u64 {
        self.build
    }

    /// The edges whose flags are set, in one bulk read.
    ///
    /// # Errors
    /// The flags are not in guest memory.
    pub fn read(&self, mem: &GuestMem) -> Result<Covered, Wild> {
        let mut flags = vec![0; self.places.len()];
        mem.read_into(self.flags, &mut flags)?;
        Ok(Covered::from_flags(&flags))
    }
}

/// Whether `len` bytes at `address` lie within `size` bytes at `start`; whatever the numbers are.
fn within(start: u64, size: u64, address: u64, len: u64) -> bool {
    address >= start && u128::from(address - start) + u128::from(len) <= size.into()
}

/// FNV-1a, a word at a time, with the high half brought down so that every bit reaches every other.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        self.0 ^= self.0 >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::testing::{CODE, ElfFile, FLAGS_AT};

    fn find(elf: &ElfFile) -> Result<Option<Edges>, String> {
        let bytes = elf.bytes();
        Edges::find(&object::File::parse(&*bytes).expect("an ELF file"))
    }

    fn why(elf: &ElfFile) -> String {
        find(elf).expect_err("hostile")
    }

    #[test]
    fn edges_are_found_in_the_order_of_the_table() {
        let edges = find(&ElfFile::with_edges(&[CODE + 32, CODE, CODE + 8])).unwrap().unwrap();
        assert_eq!(edges.places(), [CODE + 32, CODE, CODE + 8]);
        assert_eq!(edges.len(), 3);
        assert!(!edges.is_empty());
    }

    #[test]
    fn an_image_without_the_sections_has_no_edges() {
        assert_eq!(find(&ElfFile::with_edges(&[CODE]).without(FLAGS).without(PLACES)), Ok(None));
    }

    #[test]
    fn one_section_without_the_other_is_refused() {
        let elf = || ElfFile::with_edges(&[CODE]);
        assert!(why(&elf().without(FLAGS)).contains("no __sancov_bools"));
        assert!(why(&elf().without(PLACES)).contains("no __sancov_pcs"));
    }

    #[test]
    fn sections_whose_sizes_do_not_fit_are_refused() {
        let mut elf = ElfFile::with_edges(&[CODE, CODE]);
        elf.section(PLACES).data.pop();
        assert!(why(&elf).contains("31 bytes"), "{}", why(&elf));
        let mut elf = ElfFile::with_edges(&[CODE, CODE]);
        elf.section(FLAGS).size = 3;
        assert!(why(&elf).contains("3 flags") && why(&elf).contains("2 places"), "{}", why(&elf));
        // No memory is asked for on the word of a header.
        elf.section(FLAGS).size = u64::MAX;
        assert!(why(&elf).contains("18446744073709551615 flags"), "{}", why(&elf));
        elf.section(PLACES).size = u64::MAX - 15;
        assert!(why(&elf).contains("cut off"), "{}", why(&elf));
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        for place in [0, CODE - 1, CODE + 64, u64::MAX] {
            let why = why(&ElfFile::with_edges(&[CODE, place]));
            assert!(why.contains(&format!("{place:#x}, which is no code")), "{why}");
        }
        for address in [0, FLAGS_AT - 1, FLAGS_AT + 63, u64::MAX - 1, u64::MAX] {
            let mut elf = ElfFile::with_edges(&[CODE, CODE]);
            elf.section(FLAGS).address = address;
            assert!(why(&elf).contains("is not loaded"), "{address:#x}");
        }
    }

    #[test]
    fn the_build_is_that_of_the_table_and_its_order() {
        let build = |places: &[u64]| find(&ElfFile::with_edges(places)).unwrap().unwrap().build();
        assert_eq!(build(&[CODE, CODE + 8]), build(&[CODE, CODE + 8]));
        assert_ne!(build(&[CODE, CODE + 8]), build(&[CODE + 8, CODE]));
        assert_ne!(build(&[CODE]), build(&[CODE, CODE]));
    }

    #[test]
    fn flags_are_read_where_the_image_says_and_nowhere_else() {
        use vm_memory::{GuestAddress, GuestMemoryMmap};
        let edges = find(&ElfFile::with_edges(&[CODE; 10])).unwrap().unwrap();
        let with_memory =
            |size| GuestMem::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap());
        let mem = with_memory(FLAGS_AT as usize + 10);
        mem.write(FLAGS_AT - 1, &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]).unwrap();
        assert_eq!(edges.read(&mem).unwrap().iter().collect::<Vec<_>>(), [0, 9]);
        assert!(edges.read(&with_memory(FLAGS_AT as usize + 9)).is_err());
    }
}
