//! Pages that the agent carries itself, and that CRIU is told are not there (`PAGEMAP_SCAN`, linux/fs.h).
//!
//! The agent writes a file with one line for each range, `PID START END`, decimal and hexadecimal, in the
//! order of addresses. It adds what CRIU was not told to the images afterwards, by the kernel's own word.

use linux_raw_sys::general::{page_region, pm_scan_arg};
use nix::libc::{c_int, c_ulong};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// The request's number.
pub const PAGEMAP_SCAN: c_ulong = 0xc060_6610;
/// What is left out, by process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left(HashMap<u32, Vec<Range<u64>>>);

impl Left {
    /// Out of the agent's file. One that cannot be read in whole leaves nothing out.
    pub fn read(path: &Path) -> Self {
        std::fs::read_to_string(path).ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// The file's text; nothing when a line is wrong.
    pub fn parse(text: &str) -> Option<Self> {
        let mut left: HashMap<u32, Vec<Range<u64>>> = HashMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let pid = words.next()?.parse().ok()?;
            let mut address = || u64::from_str_radix(words.next()?, 16).ok();
            let range = address()?..address()?;
            let ranges = left.entry(pid).or_default();
            let in_order = ranges.last().is_none_or(|last| last.end <= range.start);
            if words.next().is_some() || range.start >= range.end || !in_order {
                return None;
            }
            ranges.push(range);
        }
        Some(Self(left))
    }

    /// Answers a scan of the page map behind `fd` with the help of the kernel's, where something is left out.
    pub fn scan(
        &self,
        fd: c_int,
        scan: &mut pm_scan_arg,
        kernel: impl FnMut(&mut pm_scan_arg) -> c_int,
    ) -> Option<c_int> {
        let ranges = self.0.get(&process(fd)?)?;
        without(ranges, scan, kernel)
    }
}

/// The process whose page map it is.
fn process(fd: c_int) -> Option<u32> {
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/pagemap")?.parse().ok()
}

/// Scans what lies between the ranges. `None` when none of them is touched, or the scan does more than look.
fn without(
    ranges: &[Range<u64>],
    scan: &mut pm_scan_arg,
    mut kernel: impl FnMut(&mut pm_scan_arg) -> c_int,
) -> Option<c_int> {
    let first = ranges.partition_point(|r| r.end <= scan.start);
    let touched = ranges.get(first..)?.iter().take_while(|r| r.start < scan.end);
    if scan.flags != 0 || scan.max_pages != 0 || touched.clone().next().is_none() {
        return None;
    }
    let whole = *scan;
    let mut at = whole.start;
    let mut regions = 0;
    let stops = touched.cloned().chain(std::iter::once(whole.end..whole.end));
    for stop in stops {
        if at < stop.start {
            let room = whole.vec_len - regions;
            if room == 0 {
                break;
            }
            let mut part = pm_scan_arg {
                start: at,
                end: stop.start,
                vec: whole.vec + regions * size_of::<page_region>() as u64,
                vec_len: room,
                ..whole
            };
            let found = kernel(&mut part);
            let Ok(found) = u64::try_from(found) else { return Some(found) };
            regions += found;
            at = part.walk_end;
            if at < stop.start {
                break;
            }
        }
        at = at.max(stop.end);
    }
    scan.walk_end = at.min(whole.end);
    c_int::try_from(regions).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(range: Range<u64>, room: u64) -> pm_scan_arg {
        pm_scan_arg {
            size: 0,
            flags: 0,
            start: range.start << 12,
            end: range.end << 12,
            walk_end: 0,
            vec: 0,
            vec_len: room,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: 0,
            return_mask: 0,
        }
    }

    /// A kernel with a region for each page that is even, as many as there is room for.
    fn even(scan: &mut pm_scan_arg) -> c_int {
        let mut count = 0;
        let mut at = scan.start;
        while at < scan.end {
            if (at / 4096).is_multiple_of(2) {
                if count == scan.vec_len {
                    break;
                }
                count += 1;
            }
            at += 4096;
        }
        scan.walk_end = at;
        count as c_int
    }

    fn look(ranges: &[Range<u64>], pages: Range<u64>, room: u64) -> Option<(c_int, u64)> {
        let mut scan = asks(pages, room);
        let answer = without(ranges, &mut scan, even)?;
        Some((answer, scan.walk_end >> 12))
    }

    fn pages(ranges: &[(u64, u64)]) -> Vec<Range<u64>> {
        ranges.iter().map(|(from, to)| from << 12..to << 12).collect()
    }

    #[test]
    fn ranges_are_passed_over() {
        let ranges = pages(&[(10, 20), (30, 31)]);
        assert_eq!(look(&ranges, 0..10, 100), None, "before");
        assert_eq!(look(&ranges, 20..30, 100), None, "between");
        assert_eq!(look(&ranges, 31..40, 100), None, "behind");
        assert_eq!(look(&ranges, 12..18, 100), Some((0, 18)), "inside");
        assert_eq!(look(&ranges, 0..40, 100), Some((5 + 5 + 4, 40)), "across");
        assert_eq!(look(&ranges, 15..22, 100), Some((1, 22)), "out of one");
        assert_eq!(look(&ranges, 8..12, 100), Some((1, 12)), "into one");
    }

    #[test]
    fn a_full_answer_is_gone_on_from() {
        let ranges = pages(&[(10, 20)]);
        assert_eq!(look(&ranges, 0..40, 3), Some((3, 6)), "within the first part");
        let (found, at) = look(&ranges, 0..40, 5).unwrap();
        assert_eq!((found, at), (5, 20), "at its end");
        assert_eq!(look(&ranges, at..40, 5), None, "the rest is the kernel's");
        assert_eq!(look(&ranges, 0..40, 7), Some((7, 24)));
    }

    #[test]
    fn an_error_is_passed_on() {
        let mut scan = asks(0..40, 10);
        assert_eq!(without(&pages(&[(1, 2)]), &mut scan, |_| -1), Some(-1));
    }

    #[test]
    fn scans_that_change_something_are_the_kernels() {
        let ranges = pages(&[(0, 40)]);
        let scan = asks(0..10, 10);
        for mut scan in [pm_scan_arg { flags: 1, ..scan }, pm_scan_arg { max_pages: 1, ..scan }] {
            assert_eq!(without(&ranges, &mut scan, even), None);
        }
    }

    #[test]
    fn a_file_is_taken_whole_or_not_at_all() {
        let left = Left::parse("7 1000 3000\n7 3000 4000\n12 7f0000000000 7f0000001000\n").unwrap();
        assert_eq!(left.0[&7], pages(&[(1, 3), (3, 4)]));
        assert_eq!(left.0[&12], pages(&[(0x7_f000_0000, 0x7_f000_0001)]));
        for bad in ["7 1000", "7 1000 3000 x", "x 1000 2000", "7 3000 1000", "7 2000 3000\n7 1000 2000", "\n"]
        {
            assert_eq!(Left::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Left::read(Path::new("/nonexistent")), Left::default());
    }

    #[test]
    fn a_page_map_is_known_by_its_name() {
        use std::os::fd::AsRawFd;
        let own = std::fs::File::open("/proc/self/pagemap").unwrap();
        assert_eq!(process(own.as_raw_fd()), Some(std::process::id()));
        let other = std::fs::File::open("/proc/self/maps").unwrap();
        assert_eq!(process(other.as_raw_fd()), None);
        assert_eq!(process(-1), None);
    }
}
