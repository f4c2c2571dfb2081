use super::*;
use crate::memory::pagemap::{Entry, PE_LAZY, PE_PRESENT};
use tranship_proto::pages::ZeroRun;

fn store(slots: u32) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), slots).unwrap();
    (dir, store)
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE as usize]
}

fn data(pid: u32, vaddr: u64, slot: u32) -> PageBatch {
    PageBatch { pid, data: vec![SlotRun { vaddr, pages: 1, slot }], ..PageBatch::default() }
}

fn images(dir: &Path, pid: u32, entries: &[Entry]) {
    std::fs::write(dir.join(format!("pagemap-{pid}.img")), pagemap::image(1, entries)).unwrap();
}

fn lazy(vaddr: u64, pages: u64) -> Entry {
    Entry { vaddr, pages, flags: PE_LAZY }
}

#[test]
fn a_sealed_store_names_a_written_slot_for_every_lazy_page() {
    let (dir, store) = store(8);
    let mut two = PageBatch {
        pid: 1,
        data: vec![SlotRun { vaddr: 0x1000, pages: 2, slot: 0 }],
        zeros: vec![ZeroRun { vaddr: 0x3000, pages: 1 }],
        ..PageBatch::default()
    };
    store.apply(&two, &[page(1), page(2)].concat()).unwrap();
    // Overwritten in the next round, and shared with another process.
    store.apply(&data(1, 0x2000, 1), &page(3)).unwrap();
    two = PageBatch {
        pid: 9,
        refs: vec![SlotRun { vaddr: 0x7000, pages: 1, slot: 1 }],
        ..PageBatch::default()
    };
    store.apply(&two, &[]).unwrap();
    // Not asked for by the images.
    store.apply(&data(1, 0xf000, 7), &page(9)).unwrap();
    images(dir.path(), 1, &[Entry { vaddr: 0, pages: 1, flags: PE_PRESENT }, lazy(0x1000, 3)]);
    images(dir.path(), 9, &[lazy(0x7000, 1)]);
    let map = store.seal(dir.path()).unwrap();
    assert_eq!(
        map.processes,
        [
            (1, vec![SlotRun { vaddr: 0x1000, pages: 2, slot: 0 }]),
            (9, vec![SlotRun { vaddr: 0x7000, pages: 1, slot: 1 }])
        ]
    );
    assert_eq!(FillMap::read(&dir.path().join(PAGES_MAP)).unwrap(), map);
    let pages = std::fs::read(dir.path().join(PAGES)).unwrap();
    assert_eq!([pages[0], pages[4096], pages[7 * 4096]], [1, 3, 9]);
}

#[test]
fn a_page_that_never_came_is_named() {
    let (dir, store) = store(8);
    store.apply(&data(4, 0x1000, 0), &page(1)).unwrap();
    let seal = |entries: &[Entry]| {
        let _ = std::fs::remove_file(dir.path().join(PAGES_MAP));
        images(dir.path(), 4, entries);
        store.seal(dir.path()).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(seal(&[lazy(0x1000, 1)]), Ok(()));
    assert_eq!(seal(&[lazy(0x1000, 2)]), Err("page 0x2000 of process 4 never came".into()));
    // A reference to a slot without contents would read as zeros.
    let hollow = PageBatch {
        pid: 4,
        refs: vec![SlotRun { vaddr: 0x2000, pages: 1, slot: 5 }],
        ..PageBatch::default()
    };
    store.apply(&hollow, &[]).unwrap();
    assert_eq!(seal(&[lazy(0x1000, 2)]), Err("page 0x2000 of process 4 never came".into()));
    store.apply(&data(5, 0, 5), &page(1)).unwrap();
    assert_eq!(seal(&[lazy(0x1000, 2)]), Ok(()));
    images(dir.path(), 6, &[lazy(0x1000, 1)]);
    assert!(seal(&[lazy(0x1000, 2)]).is_err(), "a process of which nothing came");
    std::fs::remove_file(dir.path().join("pagemap-6.img")).unwrap();
    assert!(seal(&[lazy(0x2000, 1), lazy(0x1000, 1)]).is_err(), "out of order");
}

#[test]
fn a_round_is_complete_when_each_of_its_lanes_has_ended_well() {
    let (_dir, store) = store(8);
    let none = PagesEnd::default();
    let one = PagesEnd { data_pages: 1, ..none };
    for (round, lane, lanes) in [(0, 0, 2), (2, 0, 2), (1, 0, 0), (1, 2, 2), (1, 0, MAX_LANES + 1)] {
        let (_dir, store) = self::store(8);
        assert!(store.begin_lane(round, lane, lanes).is_err(), "{round} {lane} {lanes}");
    }
    store.begin_lane(1, 0, 2).unwrap();
    assert!(store.begin_lane(1, 0, 2).is_err(), "twice");
    assert!(store.begin_lane(1, 1, 3).is_err(), "another number of lanes");
    assert!(store.begin_lane(2, 1, 2).is_err(), "the next round before its time");
    store.begin_lane(1, 1, 2).unwrap();
    assert_eq!(store.totals(), None);
    assert!(store.end_lane(1, 1, &one, &none).is_err(), "something was lost");
    assert!(!store.end_lane(1, 1, &one, &one).unwrap());
    assert!(store.end_lane(1, 0, &one, &one).unwrap());
    let pages = PagesEnd { data_pages: 2, ..none };
    assert_eq!(store.totals(), Some(MemoryTotals { rounds: 1, pages }));
    assert!(store.begin_lane(1, 0, 1).is_err(), "a round that is over");
    store.begin_lane(2, 0, 1).unwrap();
    assert!(store.end_lane(2, 0, &none, &none).unwrap());
}

#[test]
fn batches_beyond_the_limits_are_refused_and_change_nothing() {
    let (dir, store) = store(2);
    store.apply(&data(1, 0, 1), &page(1)).unwrap();
    assert!(matches!(store.apply(&data(1, 0, 2), &page(1)), Err(StoreError::TooMuch { slots: 2 })));
    assert!(matches!(store.apply(&data(1, 1, 0), &page(1)), Err(StoreError::Bulk(_))));
    assert!(store.apply(&data(1, 0, 0), &page(1)[1..]).is_err());
    assert!(store.apply(&data(0, 0, 0), &page(1)).is_err());
    let zeros =
        |vaddr, pages| PageBatch { pid: 1, zeros: vec![ZeroRun { vaddr, pages }], ..PageBatch::default() };
    assert!(matches!(store.apply(&zeros(0, u32::MAX), &[]), Err(StoreError::TooMuch { .. })));
    assert_eq!(store.tables().leaves, 1);
    // Tables are bounded whatever the addresses are.
    let room = u64::try_from(store.max_leaves).unwrap();
    let far = |n: u64| store.apply(&zeros(n << 21, 1), &[]);
    let taken = (0..2 * room).take_while(|n| far(*n).is_ok()).count();
    assert_eq!(taken, store.max_leaves - 1);
    assert_eq!(std::fs::metadata(dir.path().join(PAGES)).unwrap().len(), 2 * PAGE);
}

#[test]
fn processes_are_bounded() {
    let (_dir, store) = store(1 << 20);
    assert!(store.max_leaves > MAX_PROCESSES + 2);
    let batch = |pid| PageBatch { pid, zeros: vec![ZeroRun { vaddr: 0, pages: 1 }], ..PageBatch::default() };
    for pid in 1..=u32::try_from(MAX_PROCESSES).unwrap() {
        store.apply(&batch(pid), &[]).unwrap();
    }
    assert!(store.apply(&batch(1), &[]).is_ok());
    assert!(matches!(store.apply(&batch(1 << 20), &[]), Err(StoreError::Order(_))));
}

#[test]
fn an_emptied_store_has_no_memory_though_it_is_open() {
    let (dir, store) = store(8);
    store.apply(&data(1, 0x1000, 3), &page(1)).unwrap();
    assert!(store.file.metadata().unwrap().len() > 0);
    Store::empty(dir.path()).unwrap();
    assert_eq!(store.file.metadata().unwrap().len(), 0);
    Store::empty(&dir.path().join("never made")).unwrap();

    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "kept").unwrap();
    std::fs::remove_file(dir.path().join(PAGES)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join(PAGES)).unwrap();
    Store::empty(dir.path()).unwrap_err();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"kept");
}
