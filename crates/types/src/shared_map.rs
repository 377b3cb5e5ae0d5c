//! An ordered map whose copies share what they have in common.
//!
//! What is told is published anew at each change, and readers keep theirs for as long as they like. With a map of
//! the standard library each change copies everything, so a world of a hundred thousand apps would be copied for
//! every deploy. Here a copy costs nothing and a change as many nodes as the tree is high: it is a balanced tree
//! (AVL) whose nodes are counted, and one that somebody else reads is copied before it is changed. A key lies in its
//! node, so that a look-up reads one place of memory a step; a value lies beside it, and is never copied. In what two
//! copies differ is found without a look at what they share.
//! Rejected: a lock around one map, which every reader would hold up; a crate for it, of which those that are
//! kept up have a licence that we do not link.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

type Link<K, V> = Option<Arc<Node<K, V>>>;

/// A map in the order of its keys.
pub struct SharedMap<K, V> {
    root: Link<K, V>,
    len: usize,
}

struct Node<K, V> {
    key: K,
    value: Arc<V>,
    height: u8,
    left: Link<K, V>,
    right: Link<K, V>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K: Clone, V> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        let (key, value) = (self.key.clone(), Arc::clone(&self.value));
        let (left, right) = (self.left.clone(), self.right.clone());
        Self { key, value, height: self.height, left, right }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K: fmt::Debug + Ord, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(|other| key.cmp(other))
    }

    /// The value of the key that is sought, which a key is compared with by an order that agrees with that of the keys.
    pub fn find(&self, compared: impl Fn(&K) -> Ordering) -> Option<&V> {
        let mut next = self.root.as_deref();
        while let Some(node) = next {
            next = match compared(&node.key) {
                Ordering::Less => node.left.as_deref(),
                Ordering::Greater => node.right.as_deref(),
                Ordering::Equal => return Some(&*node.value),
            };
        }
        None
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// True for a copy of which neither was changed since.
    pub fn is_same(&self, other: &Self) -> bool {
        same_tree(self.root.as_deref(), other.root.as_deref())
    }

    /// In what it differs from a copy of before, in the order of the keys: each key with what it has now, if it has
    /// anything. What was put in anew counts as different, whatever it was.
    pub fn changes_since<'a>(&'a self, before: &'a Self) -> Changes<'a, K, V> {
        Changes { now: ahead(&self.root), before: ahead(&before.root) }
    }

    /// All entries.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.iter_from(|_| false)
    }

    /// The entries from the first on that is not before, by an order that agrees with that of the keys.
    pub fn iter_from(&self, is_before: impl Fn(&K) -> bool) -> Iter<'_, K, V> {
        let (mut ahead, mut next) = (Vec::new(), self.root.as_deref());
        while let Some(node) = next {
            next = match is_before(&node.key) {
                true => node.right.as_deref(),
                false => {
                    ahead.push(node);
                    node.left.as_deref()
                }
            };
        }
        Iter { ahead }
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord + Clone, V> SharedMap<K, V> {
    /// Puts a value in the place of the one that a key has, if it has one.
    pub fn insert(&mut self, key: K, value: V) {
        if insert(&mut self.root, key, Arc::new(value)) {
            self.len += 1;
        }
    }

    /// Takes a key away; false when there was none.
    pub fn remove(&mut self, key: &K) -> bool {
        // What is not there must not copy the way to it.
        let is_there = self.contains_key(key);
        if is_there {
            remove(&mut self.root, key);
            self.len -= 1;
        }
        is_there
    }
}

/// Entries in their order.
pub struct Iter<'a, K, V> {
    /// Those nodes whose left sides are done, the next one last.
    ahead: Vec<&'a Node<K, V>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.ahead.pop()?;
        let mut next = node.right.as_deref();
        while let Some(node) = next {
            self.ahead.push(node);
            next = node.left.as_deref();
        }
        Some((&node.key, &*node.value))
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

/// In what two maps differ.
pub struct Changes<'a, K, V> {
    now: Vec<Ahead<'a, K, V>>,
    before: Vec<Ahead<'a, K, V>>,
}

/// What is still to be looked at of a map; the next is the last in a list.
enum Ahead<'a, K, V> {
    Tree(&'a Node<K, V>),
    /// The one of that node alone.
    Entry(&'a Node<K, V>),
}

fn ahead<K, V>(root: &Link<K, V>) -> Vec<Ahead<'_, K, V>> {
    root.as_deref().map(Ahead::Tree).into_iter().collect()
}

/// Puts the parts of the next tree in its place.
fn open<'a, K, V>(ahead: &mut Vec<Ahead<'a, K, V>>) {
    match ahead.pop() {
        Some(Ahead::Tree(node)) => {
            ahead.extend(node.right.as_deref().map(Ahead::Tree));
            ahead.push(Ahead::Entry(node));
            ahead.extend(node.left.as_deref().map(Ahead::Tree));
        }
        other => ahead.extend(other),
    }
}

fn same_tree<K, V>(one: Option<&Node<K, V>>, other: Option<&Node<K, V>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        _ => false,
    }
}

impl<'a, K: Ord, V> Iterator for Changes<'a, K, V> {
    type Item = (&'a K, Option<&'a V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match (self.now.last(), self.before.last()) {
                (None, None) => return None,
                (Some(Ahead::Tree(now)), Some(Ahead::Tree(before))) => {
                    let (same, by_height) =
                        (std::ptr::eq(*now, *before), now.height.cmp(&before.height));
                    if same {
                        (_, _) = (self.now.pop(), self.before.pop());
                        continue;
                    }
                    // The higher one first, so that what they share comes up in both at the same time.
                    if by_height.is_ge() {
                        open(&mut self.now);
                    }
                    if by_height.is_le() {
                        open(&mut self.before);
                    }
                }
                (Some(Ahead::Tree(_)), _) => open(&mut self.now),
                (_, Some(Ahead::Tree(_))) => open(&mut self.before),
                (Some(Ahead::Entry(now)), before) => {
                    let (now, before) = (*now, before.and_then(Ahead::entry));
                    let order = before.map_or(Ordering::Less, |before| now.key.cmp(&before.key));
                    if order.is_ge() {
                        self.before.pop();
                    }
                    if order.is_gt() {
                        return before.map(|before| (&before.key, None));
                    }
                    self.now.pop();
                    let is_same = |before: &Node<K, V>| Arc::ptr_eq(&now.value, &before.value);
                    if order.is_lt() || !before.is_some_and(is_same) {
                        return Some((&now.key, Some(&*now.value)));
                    }
                }
                (None, Some(Ahead::Entry(before))) => {
                    let before = *before;
                    self.before.pop();
                    return Some((&before.key, None));
                }
            }
        }
    }
}

impl<'a, K, V> Ahead<'a, K, V> {
    fn entry(&self) -> Option<&'a Node<K, V>> {
        match self {
            Self::Tree(_) => None,
            Self::Entry(node) => Some(node),
        }
    }
}

fn height<K, V>(link: &Link<K, V>) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

/// True when the key is new.
fn insert<K: Ord + Clone, V>(link: &mut Link<K, V>, key: K, value: Arc<V>) -> bool {
    let Some(shared) = link else {
        *link = Some(Arc::new(Node { key, value, height: 1, left: None, right: None }));
        return true;
    };
    let node = Arc::make_mut(shared);
    let is_new = match key.cmp(&node.key) {
        Ordering::Less => insert(&mut node.left, key, value),
        Ordering::Greater => insert(&mut node.right, key, value),
        Ordering::Equal => {
            node.value = value;
            false
        }
    };
    if is_new {
        balance(shared);
    }
    is_new
}

/// Takes away a key that is there.
fn remove<K: Ord + Clone, V>(link: &mut Link<K, V>, key: &K) {
    let Some(shared) = link else { return };
    let node = Arc::make_mut(shared);
    match key.cmp(&node.key) {
        Ordering::Less => remove(&mut node.left, key),
        Ordering::Greater => remove(&mut node.right, key),
        Ordering::Equal => match (node.left.take(), node.right.take()) {
            (None, other) | (other, None) => {
                *link = other;
                return;
            }
            (left, mut right) => {
                if let Some(first) = take_first(&mut right) {
                    (node.key, node.value) = first;
                }
                (node.left, node.right) = (left, right);
            }
        },
    }
    balance(shared);
}

/// Takes the first entry out of a tree.
fn take_first<K: Clone, V>(link: &mut Link<K, V>) -> Option<(K, Arc<V>)> {
    let shared = link.as_mut()?;
    let node = Arc::make_mut(shared);
    if node.left.is_none() {
        let (first, right) = ((node.key.clone(), Arc::clone(&node.value)), node.right.take());
        *link = right;
        return Some(first);
    }
    let first = take_first(&mut node.left);
    balance(shared);
    first
}

/// Makes the two sides of a node differ by one at most, where they differ by two.
fn balance<K: Clone, V>(shared: &mut Arc<Node<K, V>>) {
    let node = Arc::make_mut(shared);
    let (left, right) = (height(&node.left), height(&node.right));
    if left > right + 1 {
        if let Some(child) = node.left.as_mut()
            && height(&child.left) < height(&child.right)
        {
            rotate_left(child);
        }
        rotate_right(shared);
    } else if right > left + 1 {
        if let Some(child) = node.right.as_mut()
            && height(&child.right) < height(&child.left)
        {
            rotate_right(child);
        }
        rotate_left(shared);
    } else {
        node.height = 1 + left.max(right);
    }
}

/// The right child takes the place of its parent.
fn rotate_left<K: Clone, V>(shared: &mut Arc<Node<K, V>>) {
    let Some(mut risen) = Arc::make_mut(shared).right.take() else { return };
    std::mem::swap(shared, &mut risen);
    let mut sunk = risen;
    let top = Arc::make_mut(shared);
    let low = Arc::make_mut(&mut sunk);
    low.right = top.left.take();
    low.height = 1 + height(&low.left).max(height(&low.right));
    top.height = 1 + low.height.max(height(&top.right));
    top.left = Some(sunk);
}

/// The left child takes the place of its parent.
fn rotate_right<K: Clone, V>(shared: &mut Arc<Node<K, V>>) {
    let Some(mut risen) = Arc::make_mut(shared).left.take() else { return };
    std::mem::swap(shared, &mut risen);
    let mut sunk = risen;
    let top = Arc::make_mut(shared);
    let low = Arc::make_mut(&mut sunk);
    low.left = top.right.take();
    low.height = 1 + height(&low.left).max(height(&low.right));
    top.height = 1 + low.height.max(height(&top.left));
    top.right = Some(sunk);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn check(link: &Link<u8, u32>) -> u8 {
        let Some(node) = link else { return 0 };
        let (left, right) = (check(&node.left), check(&node.right));
        assert!(left.abs_diff(right) <= 1, "it is balanced");
        assert_eq!(node.height, 1 + left.max(right));
        node.height
    }

    fn entries(map: &SharedMap<u8, u32>) -> Vec<(u8, u32)> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    /// A key that counts how often it is compared.
    #[derive(Clone, PartialEq, Eq)]
    struct Counted<'a>(u32, &'a Cell<u32>);

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    #[test]
    fn what_two_copies_share_is_not_looked_at() {
        let compared = Cell::new(0);
        let key = |number| Counted(number, &compared);
        let mut map = SharedMap::default();
        (0..10_000).for_each(|number| map.insert(key(number), ()));
        let before = map.clone();
        assert!(map.is_same(&before));
        map.insert(key(7), ());
        map.insert(key(20_000), ());
        map.remove(&key(9_999));
        assert!(!map.is_same(&before));
        compared.set(0);
        let changes = map.changes_since(&before).map(|(key, value)| (key.0, value.is_some()));
        assert_eq!(changes.collect::<Vec<_>>(), [(7, true), (9_999, false), (20_000, true)]);
        assert!(compared.get() < 200, "{compared:?}");
    }

    proptest! {
        /// It is a map like any other, and no copy sees what is done to another.
        #[test]
        fn it_is_a_map_and_a_copy_is_its_own(
            steps in prop::collection::vec((any::<bool>(), any::<u8>(), any::<u32>()), 0..300),
            from in any::<u8>(),
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (puts, key, value) in steps {
                copies.push((map.clone(), model.clone()));
                if puts {
                    map.insert(key, value);
                    model.insert(key, value);
                } else {
                    prop_assert_eq!(map.remove(&key), model.remove(&key).is_some());
                }
                check(&map.root);
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            copies.push((map, model));
            for (map, model) in &copies {
                for (before, model_before) in [&copies[0], &copies[copies.len() / 2]] {
                    let changes = map.changes_since(before);
                    let changes: Vec<_> = changes.map(|(key, value)| (*key, value.copied())).collect();
                    prop_assert!(changes.is_sorted_by_key(|(key, _)| *key));
                    let keys = changes.iter().map(|(key, _)| *key).collect::<BTreeSet<_>>();
                    prop_assert_eq!(keys.len(), changes.len());
                    let mut again = model_before.clone();
                    for (key, value) in changes {
                        match value {
                            Some(value) => _ = again.insert(key, value),
                            None => _ = again.remove(&key),
                        }
                    }
                    prop_assert_eq!(&again, model);
                }
                prop_assert_eq!(map.len(), model.len());
                let all: Vec<_> = model.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(entries(map), all);
                let tail: Vec<_> = map.iter_from(|key| *key < from).map(|(key, _)| *key).collect();
                let expected: Vec<_> = model.range(from..).map(|(key, _)| *key).collect();
                prop_assert_eq!(tail, expected);
            }
        }
    }
}
