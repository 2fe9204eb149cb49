//! Process memory that keeps no secret longer than it must. With `child`, the only module with unsafe code.
//!
//! Owns five things:
//! - `WipingAllocator`, the global allocator: every heap block is overwritten with zeros before it goes back to libc, also when a
//!   `Vec` grows. A secret that passed through a JSON body or a TLS buffer is gone as soon as that buffer is freed. It counts the bytes that
//!   are allocated (`live_bytes`), and knows what they may be (`room`).
//! - `LockedBytes`, slices of a locked arena: pages from `memfd_secret(2)` where the kernel has it (not readable through
//!   `/proc/PID/mem`, even by root), else anonymous pages with `mlock(2)` and `MADV_DONTDUMP`. A slice is wiped when it is dropped.
//! - `wipe_variable`, which overwrites the value of an environment variable in the block that `/proc/PID/environ` shows;
//! - `let_go_of_start`, which gives the memory and the code that only the start needs back to the system;
//! - `with_wiped_stack`, which runs a closure and then overwrites the stack below it, for code that keeps short strings inline.
//!
//! It must not know what a secret is for. Invariants: a slice is handed out once until it is dropped; a free slice holds only zeros;
//! a chunk is never unmapped while the process lives, so that no pointer dangles.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;
use zeroizing_alloc::ZeroAlloc;

/// The global allocator: libc's, with every block wiped before it is freed.
pub struct WipingAllocator(ZeroAlloc<System>);

impl WipingAllocator {
    pub const fn new() -> Self {
        Self(ZeroAlloc(System))
    }
}

impl Default for WipingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every call is passed unchanged to an allocator that upholds the contract; counting touches no block.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = unsafe { self.0.alloc(layout) };
        if !block.is_null() {
            count(layout.size() as isize);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = unsafe { self.0.alloc_zeroed(layout) };
        if !block.is_null() {
            count(layout.size() as isize);
        }
        block
    }
}

/// Bytes that were allocated and not freed, as the program asked for them; 0 where another allocator is in use.
pub fn live_bytes() -> u64 {
    // Each counter alone may be below zero: what one thread allocates another may free.
    let sum: isize = LIVE.iter().map(|counter| counter.0.load(Ordering::Relaxed)).fold(0, isize::wrapping_add);
    u64::try_from(sum).unwrap_or(0)
}

/// Says how many live bytes there may be; `None`: as many as the system gives.
pub fn set_limit(bytes: Option<u64>) {
    LIMIT.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
}

/// How the live bytes stand to the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    Enough,
    /// Three quarters are taken: what can be had again is given back.
    Little,
    /// There may be nothing new.
    None,
}

pub fn room() -> Room {
    match limit() {
        Some(limit) => room_of(live_bytes(), limit),
        None => Room::Enough,
    }
}

fn room_of(live: u64, limit: u64) -> Room {
    match live {
        live if live >= limit => Room::None,
        live if live >= limit / 4 * 3 => Room::Little,
        _ => Room::Enough,
    }
}

fn count(bytes: isize) {
    // A thread that ends has no counter of its own any more.
    let mine = MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % COUNTERS);
        }
        mine.get()
    });
    LIVE[mine.unwrap_or(0)].0.fetch_add(bytes, Ordering::Relaxed);
}

/// In a line of the processor's cache of its own, so that threads do not wait for each other.
#[repr(align(64))]
struct Counter(AtomicIsize);

static LIVE: [Counter; COUNTERS] = [const { Counter(AtomicIsize::new(0)) }; COUNTERS];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
const COUNTERS: usize = 8;

thread_local! {
    // Neither made nor ended by code, so it may be used while memory is allocated.
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Bytes in the locked arena, wiped when dropped.
pub struct LockedBytes {
    start: NonNull<u8>,
    len: usize,
    class: usize,
}

// SAFETY: a `LockedBytes` owns its slice alone; the arena behind it is guarded by a mutex.
unsafe impl Send for LockedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for LockedBytes {}

impl LockedBytes {
    /// Copies `plain` into the arena. The caller wipes the original.
    pub fn copy_from(plain: &[u8]) -> Self {
        let (start, class) = arena().take(plain.len());
        // SAFETY: the slot is at least `plain.len()` bytes, owned by nobody else, and does not overlap a heap slice.
        unsafe { std::ptr::copy_nonoverlapping(plain.as_ptr(), start.as_ptr(), plain.len()) };
        Self { start, len: plain.len(), class }
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` points at `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Zeroize for LockedBytes {
    fn zeroize(&mut self) {
        // SAFETY: as in `as_slice`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }.zeroize();
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        self.zeroize();
        arena().give_back(self.start, self.class);
    }
}

/// How the arena's pages are protected, in words for `status` and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// `memfd_secret`: locked, never dumped, out of reach for other processes.
    SecretMemory,
    /// `mlock` and `MADV_DONTDUMP`.
    Locked,
    /// The lock limit was too small: never dumped, but the kernel may swap the pages out.
    Unlocked,
}

impl Protection {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretMemory => "secret memory (memfd_secret)",
            Self::Locked => "locked (mlock)",
            Self::Unlocked => "not locked: RLIMIT_MEMLOCK is too small",
        }
    }
}

/// The weakest protection of any page that the arena has mapped so far. Maps the first chunk if there is none yet.
pub fn protection() -> Protection {
    drop(LockedBytes::copy_from(&[0]));
    arena().weakest
}

/// Makes the process refuse debuggers and readers of the same uid, and leave no core dump. Reports what the kernel refused.
///
/// In a debug build the variable `MCPEG_DEBUG_DUMPABLE` leaves all that out, so that a test that is not root's can look for secrets in the
/// process's memory. A release build does not look at it.
pub fn harden_process() -> Result<(), String> {
    if cfg!(debug_assertions) && std::env::var_os("MCPEG_DEBUG_DUMPABLE").is_some() {
        return Err("MCPEG_DEBUG_DUMPABLE is set in a debug build: the process can be read by its user".to_owned());
    }
    secmem_proc::harden_process().map_err(|error| error.to_string())
}

/// Overwrites the value of a variable in the environment that the process was started with, and so in `/proc/PID/environ` and in what
/// children inherit. The name stays, with nothing after it.
pub fn wipe_variable(name: &str) {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    // SAFETY: `environ` is a list of C strings that ends with a null pointer (environ(7)). Nothing in this process sets or removes a
    // variable, so the list and its strings stay where they are. Only bytes within one string are written, each by itself: who reads
    // that variable meanwhile sees a shorter value, and its closing zero stays.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = (*entry).cast::<u8>();
            let length = libc::strlen(*entry);
            let given = std::slice::from_raw_parts(text, length).split(|byte| *byte == b'=').next();
            if given == Some(name.as_bytes()) {
                for at in name.len() + 1..length {
                    text.add(at).write_volatile(0);
                }
            }
            entry = entry.add(1);
        }
    }
}

/// Runs `work`, then overwrites the stack that it used, so that no inline copy of a secret stays behind in a dead frame.
pub fn with_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = run_apart(work);
    wipe_stack_below();
    result
}

#[inline(never)]
fn run_apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack_below() {
    let mut frame = [0_u8; STACK_WIPE_BYTES];
    frame.zeroize();
    let frame = std::hint::black_box(&mut frame);
    give_back(frame);
}

/// Gives the whole pages of a wiped buffer back to the system, so that a thread does not keep a deep stack that it needed once.
fn give_back(wiped: &mut [u8]) {
    let start = wiped.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + wiped.len()) / PAGE * PAGE);
    if first < end {
        // SAFETY: the pages lie within a buffer that is borrowed here alone, in private anonymous memory, and hold zeros before and after.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
    }
}

struct Arena {
    /// Free slots by size class; class `n` holds slots of `SMALLEST << n` bytes.
    free: [Vec<NonNull<u8>>; CLASSES],
    /// The part of the newest chunk that no slot has been cut from.
    rest: Option<(NonNull<u8>, usize)>,
    weakest: Protection,
}

// SAFETY: the pointers are only used under the arena's mutex.
unsafe impl Send for Arena {}

impl Arena {
    const fn new() -> Self {
        Self { free: [const { Vec::new() }; CLASSES], rest: None, weakest: Protection::SecretMemory }
    }

    fn take(&mut self, len: usize) -> (NonNull<u8>, usize) {
        let class = class_of(len);
        if let Some(slot) = self.free[class].pop() {
            return (slot, class);
        }
        (self.cut(SMALLEST << class), class)
    }

    fn give_back(&mut self, slot: NonNull<u8>, class: usize) {
        self.free[class].push(slot);
    }

    /// Cuts a new slot, from a new chunk if the newest one has too little left.
    fn cut(&mut self, size: usize) -> NonNull<u8> {
        let (start, left) = match self.rest {
            Some((start, left)) if left >= size => (start, left),
            _ => {
                let bytes = size.max(CHUNK_BYTES);
                let (start, protection) = map_chunk(bytes);
                self.weakest = self.weakest.weaker(protection);
                (start, bytes)
            }
        };
        // SAFETY: `size <= left`, so the sum stays within the mapping or one past its end.
        self.rest = Some((unsafe { start.add(size) }, left - size));
        start
    }
}

impl Protection {
    fn weaker(self, other: Self) -> Self {
        let rank = |protection| match protection {
            Self::SecretMemory => 2,
            Self::Locked => 1,
            Self::Unlocked => 0,
        };
        if rank(other) < rank(self) { other } else { self }
    }
}

fn arena() -> MutexGuard<'static, Arena> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

fn class_of(len: usize) -> usize {
    let size = len.max(SMALLEST).next_power_of_two();
    (size.trailing_zeros() - SMALLEST.trailing_zeros()) as usize
}

/// Maps `bytes` (a multiple of the page size) of zeroed pages with the best protection that the kernel and the limits allow.
///
/// Panics when the address space itself is exhausted, as the global allocator would abort.
fn map_chunk(bytes: usize) -> (NonNull<u8>, Protection) {
    if let Some(start) = map_secret_memory(bytes) {
        return (start, Protection::SecretMemory);
    }
    let start = map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
        .unwrap_or_else(|| panic!("mapping {bytes} bytes for secrets failed: {}", std::io::Error::last_os_error()));
    // SAFETY: the range was just mapped by us.
    let locked = unsafe {
        libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTDUMP);
        libc::mlock(start.as_ptr().cast(), bytes) == 0
    };
    (start, if locked { Protection::Locked } else { Protection::Unlocked })
}

fn map_secret_memory(bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: plain system calls on a descriptor that this function owns; the mapping outlives the descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC as libc::c_uint) as libc::c_int;
        if fd < 0 {
            return None;
        }
        let sized = libc::ftruncate(fd, bytes as libc::off_t) == 0;
        let start = if sized { map(bytes, libc::MAP_SHARED, fd) } else { None };
        libc::close(fd);
        start
    }
}

/// Has all threads share `ARENAS` heaps: glibc would give a heap of its own to nearly each of them, most of which hold a few small things.
/// To be called before there are other threads.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number that the allocator looks at when a thread allocates for the first time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives back to the system what only the start needed: free pages of the heap, and the pages of the program's own code and constants, of which
/// those that are still used are read in again. A start runs much that nothing needs afterwards (relocation, arguments, YAML, schemas).
pub fn let_go_of_start() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
    let_go_of_code();
}

/// Does nothing where `/proc` does not say where the code lies.
fn let_go_of_code() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, end) in maps.lines().filter_map(|line| code_of(line, program.to_str()?)) {
        // SAFETY: a private mapping of a file that is never written, with no relocations in it, holds what the file holds.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// The addresses of a line of `/proc/PID/maps` (proc_pid_maps(5)), if it is code of `program`, or the segment that its file begins with: headers,
/// relocations, constants. What the loader has written to before it made it read-only lies elsewhere, and holds more than its file.
fn code_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, modes, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let is_first = modes == "r--p" && u64::from_str_radix(offset, 16) == Ok(0);
    if !(modes == "r-xp" || is_first) || fields.nth(2)? != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

static ARENA: Mutex<Arena> = Mutex::new(Arena::new());
const SMALLEST: usize = 32;
const CLASSES: usize = usize::BITS as usize - SMALLEST.trailing_zeros() as usize;
const CHUNK_BYTES: usize = 32 * 1024;
/// One for each thread that serves requests. Small pieces come from what each thread keeps for itself, whatever the number.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
const STACK_WIPE_BYTES: usize = 192 * 1024;
/// Of each architecture that Linux runs on it is this or a multiple, which `madvise` refuses to take a part of.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_executable_and_the_programs_own() {
        let line = "55d0c0a00000-55d0c1200000 r-xp 00400000 fe:01 1234                       /usr/bin/mcpeg";
        assert_eq!(code_of(line, "/usr/bin/mcpeg"), Some((0x55d0_c0a0_0000, 0x55d0_c120_0000)));
        assert_eq!(code_of(line, "/usr/bin/other"), None);
        assert_eq!(code_of(&line.replace("r-xp", "r--p"), "/usr/bin/mcpeg"), None);
        let first = line.replace("r-xp 00400000", "r--p 00000000");
        assert!(code_of(&first, "/usr/bin/mcpeg").is_some());
        assert_eq!(code_of(&first.replace("r--p", "rw-p"), "/usr/bin/mcpeg"), None);
        // What runs goes on.
        let_go_of_code();
    }

    #[test]
    fn what_is_allocated_is_counted_whoever_frees_it() {
        let before: isize = LIVE.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        let layout = Layout::from_size_align(1 << 20, 8).unwrap();
        // SAFETY: the block is used by nobody and freed once, with the layout that it has.
        let block = unsafe { WipingAllocator::new().alloc(layout) } as usize;
        let between: isize = LIVE.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        assert_eq!(between - before, 1 << 20);
        std::thread::spawn(move || unsafe { WipingAllocator::new().dealloc(block as *mut u8, layout) }).join().unwrap();
        let after: isize = LIVE.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        assert_eq!(after, before);
        assert_eq!(
            [74, 75, 99, 100].map(|live| room_of(live, 100)),
            [Room::Enough, Room::Little, Room::Little, Room::None]
        );
    }

    #[test]
    fn a_slice_reads_back_and_its_slot_is_wiped_and_used_again() {
        let first = LockedBytes::copy_from(b"correct horse battery staple, forty bytes");
        assert_eq!(first.as_slice(), b"correct horse battery staple, forty bytes");
        let slot = first.start;
        let class = first.class;
        drop(first);
        assert!(arena().free[class].contains(&slot));
        // SAFETY: the chunk stays mapped for the life of the process.
        let left = unsafe { std::slice::from_raw_parts(slot.as_ptr(), 41) };
        assert!(left.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn sizes_from_zero_to_beyond_a_chunk_fit() {
        for len in [0, 1, 31, 32, 33, 4096, CHUNK_BYTES, CHUNK_BYTES * 3 + 1] {
            let plain = vec![7_u8; len];
            assert_eq!(LockedBytes::copy_from(&plain).as_slice(), plain);
        }
    }
}
