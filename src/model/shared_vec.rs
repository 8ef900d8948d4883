//! A list whose elements it shares with its copies.

use std::{
    ops::{Index, IndexMut},
    slice,
    sync::Arc,
};

use serde::{Serialize, Serializer};

/// A list that is copied without its elements: one look at the node repeats most of what the last one
/// showed. An element that is changed is a copy of its own then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedVec<T>(Vec<Arc<T>>);

/// What [`SharedVec::iter`] goes through.
pub type Iter<'a, T> = std::iter::Map<slice::Iter<'a, Arc<T>>, fn(&'a Arc<T>) -> &'a T>;

/// What [`SharedVec::iter_mut`] goes through.
pub type IterMut<'a, T> =
    std::iter::Map<slice::IterMut<'a, Arc<T>>, fn(&'a mut Arc<T>) -> &'a mut T>;

impl<T> SharedVec<T> {
    /// Its elements, in their order.
    pub fn iter(&self) -> Iter<'_, T> {
        self.0.iter().map(Arc::as_ref)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one at the end.
    pub fn push(&mut self, element: T) {
        self.0.push(Arc::new(element));
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes out the one at `index`, which must be there.
    pub fn remove(&mut self, index: usize) -> Arc<T> {
        self.0.remove(index)
    }

    /// Takes out the last one.
    pub fn pop(&mut self) -> Option<Arc<T>> {
        self.0.pop()
    }
}

impl<T: Clone> SharedVec<T> {
    /// Its elements, to be changed.
    pub fn iter_mut(&mut self) -> IterMut<'_, T> {
        self.0.iter_mut().map(Arc::make_mut)
    }
}

impl<T> Default for SharedVec<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> From<Vec<Arc<T>>> for SharedVec<T> {
    fn from(elements: Vec<Arc<T>>) -> Self {
        Self(elements)
    }
}

impl<T> FromIterator<T> for SharedVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Self(elements.into_iter().map(Arc::new).collect())
    }
}

impl<T, const N: usize> From<[T; N]> for SharedVec<T> {
    fn from(elements: [T; N]) -> Self {
        elements.into_iter().collect()
    }
}

impl<'a, T> IntoIterator for &'a SharedVec<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T: Clone> IntoIterator for &'a mut SharedVec<T> {
    type Item = &'a mut T;
    type IntoIter = IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T> Index<usize> for SharedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.0[index]
    }
}

impl<T: Clone> IndexMut<usize> for SharedVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        Arc::make_mut(&mut self.0[index])
    }
}

impl<T: Serialize> Serialize for SharedVec<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_elements_until_one_is_changed() {
        let first: SharedVec<String> = ["a".to_owned(), "b".to_owned()].into();
        let mut second = first.clone();
        assert!(std::ptr::eq(&raw const first[0], &raw const second[0]));
        second[0].push('!');
        second.iter_mut().last().unwrap().push('?');
        assert_eq!(first.iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(second.iter().collect::<Vec<_>>(), ["a!", "b?"]);
    }
}
