//! Which lists of launches are kept as graphs, so that a step which asks for a known one is one call to the driver.
//!
//! A graph is found by all of its launches and arguments, so that nobody has to say when one has become stale. Rows are not
//! rounded up to buckets: a step of decoding has a list for each number of rows and each room for contexts (`context_room`),
//! so 256 slots with four rooms can ask for a thousand. Those that a server's load asks for at a time are tens, and they are
//! what is kept: how many depends on how long they are.
//!
//! Source of the idea: the CUDA programming guide, "CUDA graphs".

use std::collections::HashMap;

use super::device::Launches;

/// Kernels of all graphs that are kept, at most: 100 lists of a model with 326 launches a step.
const KERNELS_MAX: usize = 32 << 10;
/// Bytes of device memory for each: a guess, which is that of NVIDIA's own cache of graphs (cccl, `executable_graph_cache.cuh`).
/// What a driver takes is measured when it makes graphs, see `GraphMemory`.
const KERNEL_BYTES_GUESS: u64 = 10 << 10;
/// A small device's graphs have this part of it.
const DEVICE_PART: u64 = 64;
/// Lists of which it is remembered that they were asked for. More than are kept, so that those which come back are found
/// among the pieces of prompts, which seldom do.
const SEEN_MAX: usize = 1024;

/// Kernels of all graphs that may be kept on a device of so many bytes.
pub(super) fn kernels_max(memory_bytes: u64) -> usize {
    KERNELS_MAX.min((memory_bytes / DEVICE_PART / KERNEL_BYTES_GUESS) as usize)
}

/// Bytes that are planned for the graphs of a device of so many bytes.
pub(super) fn bytes_max(memory_bytes: u64) -> u64 {
    kernels_max(memory_bytes) as u64 * KERNEL_BYTES_GUESS
}

/// Graphs by what they do; `G` is the driver's handle.
pub(super) struct Graphs<G> {
    /// By mark: the list, which is to be the same to the last word.
    kept: HashMap<u64, Kept<G>>,
    /// Launches of those, and how many there may be.
    kernels: usize,
    kernels_max: usize,
    /// As many as there may be while the device has memory.
    planned: usize,
    /// Marks of lists that were asked for and are not kept, and when that was last. Two lists of one mark cost a graph that
    /// is made too early.
    seen: HashMap<u64, u64>,
    /// Goes up with everything that is asked.
    now: u64,
}

struct Kept<G> {
    list: Launches,
    graph: G,
    used: u64,
}

impl<G: Copy> Graphs<G> {
    /// None yet, and of so many kernels at most.
    pub fn new(planned: usize) -> Graphs<G> {
        Graphs { kept: HashMap::new(), kernels: 0, kernels_max: planned, planned, seen: HashMap::new(), now: 0 }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// The graph of exactly this list.
    pub fn find(&mut self, list: &Launches) -> Option<G> {
        self.now += 1;
        let kept = self.kept.get_mut(&list.mark()).filter(|kept| kept.list == *list)?;
        kept.used = self.now;
        Some(kept.graph)
    }

    /// Which graphs make room for one of this list, if it was asked for before, and so may be again; they are kept no longer.
    /// None when it is new, which is remembered for next time, or when there is no room: only graphs that were not used since
    /// it came last make some. So lists that come in turn and are too many do not drive each other out: some are kept, the
    /// others are launched.
    pub fn room_for(&mut self, list: &Launches) -> Option<Vec<G>> {
        let (mark, now) = (list.mark(), self.now);
        if self.seen.len() == SEEN_MAX && !self.seen.contains_key(&mark) {
            // Each was seen at another time, so at least half of them go.
            self.seen.retain(|_, seen| now - *seen < SEEN_MAX as u64 / 2);
        }
        let before = self.seen.insert(mark, now)?;
        // Another list of the same mark leaves in any case.
        let mut leave: Vec<u64> = self.kept.contains_key(&mark).then_some(mark).into_iter().collect();
        let of = |mark: &u64| self.kept[mark].list.len();
        let mut kernels = self.kernels + list.len() - leave.iter().map(of).sum::<usize>();
        if kernels > self.kernels_max {
            let mut stale: Vec<(u64, u64)> = self.kept.iter().map(|(mark, kept)| (kept.used, *mark)).collect();
            stale.retain(|(used, other)| *used < before && *other != mark);
            stale.sort_unstable();
            let mut stale = stale.into_iter().map(|(_, mark)| mark);
            while kernels > self.kernels_max {
                let mark = stale.next()?;
                kernels -= of(&mark);
                leave.push(mark);
            }
        }
        self.seen.remove(&mark);
        Some(leave.iter().filter_map(|mark| self.forget(*mark)).collect())
    }

    fn forget(&mut self, mark: u64) -> Option<G> {
        let kept = self.kept.remove(&mark)?;
        self.kernels -= kept.list.len();
        Some(kept.graph)
    }

    /// Keeps a graph for which there is room.
    pub fn keep(&mut self, list: &Launches, graph: G) {
        self.kernels += list.len();
        self.kept.insert(list.mark(), Kept { list: list.clone(), graph, used: self.now });
    }

    /// The device has no memory for more of them: from now on a new one takes the place of old ones.
    pub fn is_full(&mut self) {
        self.kernels_max = self.kernels;
    }

    /// Gives back all graphs; there may be memory for more then. What was seen stays seen.
    pub fn drain(&mut self) -> impl Iterator<Item = G> {
        (self.kernels, self.kernels_max) = (0, self.planned);
        self.kept.drain().map(|(_, kept)| kept.graph)
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::Arguments;
    use super::*;

    fn list(rows: usize) -> Launches {
        let mut list = Launches::default();
        for layer in 0..3 {
            let arguments = Arguments::new().pointer(1 << 40 | layer).int(rows).structure(&[1, 2]).float(0.5);
            list.push("some_kernel", [rows as u32, 1, 1], 128, 0, &arguments);
        }
        list
    }

    fn get(graphs: &mut Graphs<usize>, rows: usize) -> Option<usize> {
        graphs.find(&list(rows))
    }

    #[test]
    fn a_graph_is_made_the_second_time_and_found_by_all_that_it_does() {
        let mut graphs = Graphs::new(KERNELS_MAX);
        assert_eq!((get(&mut graphs, 1), graphs.room_for(&list(1))), (None, None));
        assert_eq!((get(&mut graphs, 2), graphs.room_for(&list(2))), (None, None));
        assert_eq!((get(&mut graphs, 1), graphs.room_for(&list(1))), (None, Some(vec![])));
        graphs.keep(&list(1), 10);
        assert_eq!((get(&mut graphs, 1), get(&mut graphs, 2)), (Some(10), None));
        let changes: [fn(&mut Launches); 5] = [
            |l| l.push("some_kernel", [1, 1, 1], 128, 0, &Arguments::new()),
            |l| {
                l.clear();
                l.push("some_kernel", [1, 1, 1], 128, 0, &Arguments::new().pointer(1 << 40));
            },
            |l| *l = changed(|a| a.float(0.25), [1, 1, 1], 128, 0),
            |l| *l = changed(|a| a.float(0.5), [1, 2, 1], 128, 0),
            |l| *l = changed(|a| a.float(0.5), [1, 1, 1], 128, 16),
        ];
        for change in changes {
            let mut other = list(1);
            change(&mut other);
            assert_eq!(graphs.find(&other), None, "{other:?}");
        }
        assert_eq!(graphs.find(&changed(|a| a.float(0.5), [1, 1, 1], 128, 0)), Some(10));
    }

    /// The list of one row, with another last launch.
    fn changed(end: fn(Arguments) -> Arguments, grid: [u32; 3], threads: u32, shared: usize) -> Launches {
        let mut changed = Launches::default();
        for launch in list(1).each().take(2) {
            let words = launch.arguments().next().expect("it has four")[0];
            let arguments = Arguments::new().pointer(words).int(1).structure(&[1, 2]).float(0.5);
            changed.push(launch.kernel, launch.grid, launch.threads, launch.shared_bytes, &arguments);
        }
        let arguments = end(Arguments::new().pointer(1 << 40 | 2).int(1).structure(&[1, 2]));
        changed.push("some_kernel", grid, threads, shared, &arguments);
        changed
    }

    #[test]
    fn a_small_device_keeps_fewer() {
        assert_eq!((kernels_max(80 << 30), bytes_max(80 << 30)), (KERNELS_MAX, 320 << 20));
        assert_eq!((kernels_max(640 << 10), bytes_max(640 << 10), bytes_max(0)), (1, 10 << 10, 0));
        let mut graphs = Graphs::new(7);
        for rows in [1, 2, 3] {
            assert_eq!(ask(&mut graphs, rows), (None, vec![]));
        }
        let again = [1, 2, 3].map(|rows| ask(&mut graphs, rows));
        assert_eq!(again, [(Some(1), vec![]), (Some(2), vec![]), (None, vec![])], "a third one is one too many");
    }

    #[test]
    fn long_lists_are_as_many_as_short_ones_of_as_many_kernels() {
        let long = |rows: usize| {
            let mut list = list(rows);
            while list.len() < KERNELS_MAX / 2 {
                list.push("some_kernel", [1, 1, 1], 128, 0, &Arguments::new().int(rows));
            }
            list
        };
        let mut graphs = Graphs::new(KERNELS_MAX);
        for (rows, left) in [(1, vec![]), (2, vec![]), (3, vec![1])] {
            for wanted in [None, Some(left)] {
                assert_eq!((graphs.find(&long(rows)), graphs.room_for(&long(rows))), (None, wanted));
            }
            graphs.keep(&long(rows), rows);
        }
    }

    /// Asks for a list as the driver does: its graph; those that left for it.
    fn ask(graphs: &mut Graphs<usize>, rows: usize) -> (Option<usize>, Vec<usize>) {
        if let Some(graph) = get(graphs, rows) {
            return (Some(graph), Vec::new());
        }
        let Some(left) = graphs.room_for(&list(rows)) else { return (None, Vec::new()) };
        graphs.keep(&list(rows), rows);
        (Some(rows), left)
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let mut graphs = Graphs::new(KERNELS_MAX);
        let fit = 50;
        for rows in (1..=fit).chain(1..=fit) {
            assert!(ask(&mut graphs, rows).1.is_empty());
        }
        assert_eq!((graphs.len(), graphs.kernels), (fit, fit * 3));
        graphs.is_full();
        assert_eq!(ask(&mut graphs, 1), (Some(1), vec![]));
        // One more is new, then comes again, but others were used meanwhile.
        assert_eq!(ask(&mut graphs, fit + 1), (None, vec![]));
        assert_eq!(ask(&mut graphs, fit + 1), (Some(fit + 1), vec![2]));
        assert_eq!((ask(&mut graphs, 1).0, get(&mut graphs, 2), graphs.len()), (Some(1), None, fit));
        let mut all: Vec<usize> = graphs.drain().collect();
        all.sort_unstable();
        assert_eq!((all.len(), all[0], all[1], graphs.len()), (fit, 1, 3, 0));
    }

    /// Whoever made a graph of each of them would make one a step, and use none twice.
    #[test]
    fn of_lists_that_come_in_turn_and_are_too_many_some_stay() {
        let mut graphs = Graphs::new(KERNELS_MAX);
        for rows in (1..=8).chain(1..=8) {
            ask(&mut graphs, rows);
        }
        graphs.is_full();
        for turn in 0..20 {
            let found = (1..=12).map(|rows| ask(&mut graphs, rows)).filter(|(graph, _)| graph.is_some());
            assert_eq!(
                found.collect::<Vec<_>>(),
                (1..=8).map(|rows| (Some(rows), vec![])).collect::<Vec<_>>(),
                "{turn}"
            );
        }
        // When they are asked for no more, the others have their room.
        let left: usize = (0..3).flat_map(|_| 20..26).map(|rows| ask(&mut graphs, rows).1.len()).sum();
        assert_eq!((left, graphs.len()), (6, 8));
        assert!((20..26).all(|rows| get(&mut graphs, rows) == Some(rows)));
    }

    /// The mark is of a part of a list: what is found is compared as a whole.
    #[test]
    fn lists_of_one_mark_are_told_apart() {
        let long = |middle: usize| {
            let mut list = Launches::default();
            for index in 0..100 {
                let word = if index == 50 { middle } else { index };
                list.push("some_kernel", [1, 1, 1], 128, 0, &Arguments::new().int(word));
            }
            list
        };
        assert_eq!(long(1).mark(), long(2).mark());
        let mut graphs = Graphs::new(KERNELS_MAX);
        assert_eq!((graphs.find(&long(1)), graphs.room_for(&long(1))), (None, None));
        assert_eq!((graphs.find(&long(1)), graphs.room_for(&long(1))), (None, Some(vec![])));
        graphs.keep(&long(1), 1);
        assert_eq!((graphs.find(&long(2)), graphs.room_for(&long(2))), (None, None));
        assert_eq!((graphs.find(&long(2)), graphs.room_for(&long(2))), (None, Some(vec![1])));
        graphs.keep(&long(2), 2);
        assert_eq!((graphs.find(&long(1)), graphs.find(&long(2)), graphs.kernels), (None, Some(2), 100));
    }

    #[test]
    fn lists_that_never_repeat_fill_nothing() {
        let mut graphs: Graphs<usize> = Graphs::new(KERNELS_MAX);
        for rows in 1..3000 {
            assert_eq!(ask(&mut graphs, rows), (None, vec![]));
        }
        assert!(graphs.len() == 0 && graphs.seen.len() <= SEEN_MAX);
        assert_eq!((ask(&mut graphs, 2999).0, ask(&mut graphs, 1).0), (Some(2999), None));
    }
}
