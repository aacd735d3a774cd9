//! Memory that one value after the other lives in.
//!
//! At its bounds a server forgets one task for each that comes. To give the memory of the one back and to ask for that of the
//! other touches cold lines of both, and the allocator's own; in its place the newcomer moves in.

// An `Arc` whose value is taken out of it, and another put in.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::Arc;

/// The memory of an `Arc` whose value is gone.
pub struct Shell<T>(Arc<MaybeUninit<T>>);

impl<T> Shell<T> {
    /// Takes the value out of its memory.
    ///
    /// # Errors
    ///
    /// When somebody else has it, too: then it stays as it was.
    pub fn open(mut whole: Arc<T>) -> Result<(T, Shell<T>), Arc<T>> {
        if Arc::get_mut(&mut whole).is_none() {
            return Err(whole);
        }
        // SAFETY: a `MaybeUninit<T>` has size and alignment of a `T`, and nobody else has the `Arc`, as was just seen; so none is
        // left that would take what is in there for a `T`.
        let shell = unsafe { Arc::from_raw(Arc::into_raw(whole).cast::<MaybeUninit<T>>()) };
        // SAFETY: it was initialised, and nobody reads it again before `fill` has put another there.
        let value = unsafe { shell.assume_init_read() };
        Ok((value, Shell(shell)))
    }

    /// Puts a value there.
    pub fn fill(self, value: T) -> Arc<T> {
        let Shell(mut shell) = self;
        Arc::get_mut(&mut shell).expect("a shell has one owner").write(value);
        // SAFETY: it was just written.
        unsafe { shell.assume_init() }
    }
}

/// A value in the memory of another, or in its own.
pub fn place<T>(value: T, shell: Option<Shell<T>>) -> Arc<T> {
    match shell {
        Some(shell) => shell.fill(value),
        None => Arc::new(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_lives_where_the_first_did() {
        let first = Arc::new(vec![1, 2, 3]);
        let at = Arc::as_ptr(&first);
        let Ok((value, shell)) = Shell::open(first) else { panic!("nobody else has it") };
        assert_eq!(value, [1, 2, 3]);
        let second = place(vec![4], Some(shell));
        assert_eq!((&second[..], Arc::as_ptr(&second)), (&[4][..], at));
        assert_eq!(*place(5, None), 5);
    }

    #[test]
    fn what_somebody_else_has_stays() {
        let ours = Arc::new(String::from("kept"));
        let theirs = ours.clone();
        let Err(ours) = Shell::open(ours) else { panic!("somebody has it") };
        drop(theirs);
        let weak = Arc::downgrade(&ours);
        let Err(ours) = Shell::open(ours) else { panic!("somebody may ask for it") };
        assert_eq!((&**ours, weak.strong_count()), ("kept", 1));
    }

    #[test]
    fn a_value_is_dropped_once_and_an_empty_shell_drops_none() {
        let counted = Arc::new(());
        let Ok((value, shell)) = Shell::open(Arc::new(counted.clone())) else { panic!("nobody else has it") };
        assert_eq!(Arc::strong_count(&counted), 2);
        drop(value);
        assert_eq!(Arc::strong_count(&counted), 1);
        drop(shell);
        assert_eq!(Arc::strong_count(&counted), 1);
    }
}
