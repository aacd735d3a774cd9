//! Which lists of launches are kept as graphs, so that a step which asks for a known one is one call to the driver.
//!
//! Source of the idea: the CUDA programming guide, "CUDA graphs"; what is particular here is that a graph is found by all of
//! its launches and arguments, so that nobody has to say when one has become stale.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use super::device::Launches;

/// Graphs that are kept. A step of decoding has a list for each number of rows and each room for contexts (`context_room`):
/// this is all of sixteen slots with four rooms. One is some hundreds of kilobytes of the driver's memory for a model of
/// hundreds of launches: that is NVIDIA's design and was not measured here.
pub(super) const GRAPHS_MAX: usize = 64;
/// Lists of which it is remembered that they were asked for. More than are kept, so that those which come back are found
/// among the pieces of prompts, which seldom do.
const SEEN_MAX: usize = 512;

/// Graphs by what they do; `G` is the driver's handle.
pub(super) struct Graphs<G> {
    /// Last used first.
    kept: Vec<(Launches, G)>,
    /// Hashes of lists that were asked for and are not kept. Two lists of one hash cost a graph that is made too early.
    seen: VecDeque<u64>,
    hasher: RandomState,
}

impl<G: Copy> Graphs<G> {
    pub fn new() -> Graphs<G> {
        Graphs { kept: Vec::new(), seen: VecDeque::new(), hasher: RandomState::new() }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// The graph of exactly this list. There is no hash to be made of a list first: comparing stops at the first difference,
    /// which lists of other rows and contexts have within the first layer.
    pub fn find(&mut self, list: &Launches) -> Option<G> {
        let index = self.kept.iter().position(|(kept, _)| kept == list)?;
        self.kept[..=index].rotate_right(1);
        Some(self.kept[0].1)
    }

    /// True when this list was asked for before, and so may be again; otherwise it is remembered for next time.
    pub fn is_repeated(&mut self, list: &Launches) -> bool {
        let hash = self.hasher.hash_one(list);
        if let Some(index) = self.seen.iter().position(|seen| *seen == hash) {
            self.seen.remove(index);
            return true;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(hash);
        false
    }

    /// Keeps a graph; gives back the one that was not used for the longest time if there is no room.
    pub fn keep(&mut self, list: &Launches, graph: G) -> Option<G> {
        let last = if self.kept.len() == GRAPHS_MAX { self.kept.pop() } else { None };
        self.kept.insert(0, (list.clone(), graph));
        last.map(|(_, graph)| graph)
    }

    /// Gives back all graphs. What was seen stays seen.
    pub fn drain(&mut self) -> impl Iterator<Item = G> {
        self.kept.drain(..).map(|(_, graph)| graph)
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
        let mut graphs = Graphs::new();
        assert_eq!((get(&mut graphs, 1), graphs.is_repeated(&list(1))), (None, false));
        assert!(!graphs.is_repeated(&list(2)) && graphs.is_repeated(&list(1)));
        assert_eq!(graphs.keep(&list(1), 10), None);
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
    fn what_was_not_used_for_longest_makes_room() {
        let mut graphs = Graphs::new();
        for rows in 0..GRAPHS_MAX {
            assert_eq!(graphs.keep(&list(rows + 1), rows), None);
        }
        assert_eq!(get(&mut graphs, 1), Some(0));
        assert_eq!(graphs.keep(&list(1000), 1000), Some(1));
        assert_eq!((get(&mut graphs, 1), get(&mut graphs, 2), graphs.len()), (Some(0), None, GRAPHS_MAX));
        let mut all: Vec<usize> = graphs.drain().collect();
        all.sort_unstable();
        assert_eq!((all.len(), all[0], all[1], graphs.len()), (GRAPHS_MAX, 0, 2, 0));
    }

    #[test]
    fn lists_that_never_repeat_fill_nothing() {
        let mut graphs: Graphs<usize> = Graphs::new();
        for rows in 1..3000 {
            assert!(graphs.find(&list(rows)).is_none() && !graphs.is_repeated(&list(rows)));
        }
        assert_eq!((graphs.len(), graphs.seen.len()), (0, SEEN_MAX));
        assert!(graphs.is_repeated(&list(2999)) && !graphs.is_repeated(&list(1)));
    }
}
