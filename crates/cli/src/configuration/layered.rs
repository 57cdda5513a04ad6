//! Reads a stack of layers into a type, merging as the type asks: the type tells tables, maps and enums apart.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeInteger, DeValue};

use super::refusal::{Reason, Refusal};
use super::text::Place;
use super::variant::Variant;

/// Where each value that was used was written, by dotted key.
pub(super) type Places = BTreeMap<String, Place>;

/// Reads texts' trees, lowest first.
pub(super) fn read<T: DeserializeOwned>(trees: &[Spanned<DeValue<'_>>]) -> Result<(T, Places), Refusal> {
    let places = RefCell::default();
    let layers = trees.iter().enumerate().rev().map(|(text, value)| Layer { text, key: 0..0, value });
    let node = Node { key: String::new(), layers: layers.collect(), place: None, places: &places };
    let value = T::deserialize(node)?;
    Ok((value, places.into_inner()))
}

/// What one text says at a key.
#[derive(Clone, Debug)]
pub(super) struct Layer<'a> {
    pub(super) text: usize,
    pub(super) key: Range<usize>,
    pub(super) value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Layer<'a> {
    /// Where to point at: the key of a table, for it is short, else the value.
    pub(super) fn place(&self) -> Place {
        let span = if self.value.get_ref().is_table() { self.key.clone() } else { self.value.span() };
        Place { text: self.text, span }
    }

    pub(super) fn key_place(&self) -> Place {
        Place { text: self.text, span: self.key.clone() }
    }

    /// The entries of a table, in the order of the text.
    pub(super) fn entries(&self) -> Vec<(&'a str, Self)> {
        let table = self.value.get_ref().as_table();
        let layer = |key: Range<usize>, value| Layer { text: self.text, key, value };
        let entries = table.into_iter().flatten().map(|(k, v)| (k.get_ref().as_ref(), layer(k.span(), v)));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(_, layer)| layer.key.start);
        entries
    }
}

/// What all texts say at a key, topmost first.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    pub(super) key: String,
    pub(super) layers: Vec<Layer<'a>>,
    /// Where the key was written last, if it was.
    pub(super) place: Option<Place>,
    pub(super) places: &'a RefCell<Places>,
}

impl<'a> Node<'a> {
    pub(super) fn note(&self) {
        if let Some(place) = &self.place {
            self.places.borrow_mut().insert(self.key.clone(), place.clone());
        }
    }

    /// The node below, at a key or an index of this one.
    fn child(&self, key: String, layers: Vec<Layer<'a>>) -> Self {
        let place = layers.first().map(Layer::place).or_else(|| self.place.clone());
        Node { key, layers, place, places: self.places }
    }

    /// The nodes below a table: those of all layers, down to the first that is no table.
    fn children(&self) -> Vec<(&'a str, Self)> {
        let tables = self.layers.iter().take_while(|layer| layer.value.get_ref().is_table());
        let mut by_key: BTreeMap<&str, Vec<Layer<'a>>> = BTreeMap::new();
        let mut order = Vec::new();
        for (key, layer) in tables.flat_map(Layer::entries) {
            order.push(key);
            by_key.entry(key).or_default().push(layer);
        }
        let mut seen = BTreeSet::new();
        let keys = order.into_iter().filter(|key| seen.insert(*key));
        let child = |key: &'a str| {
            let path = if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) };
            Some((key, self.child(path, by_key.remove(key)?)))
        };
        keys.filter_map(child).collect()
    }

    /// Reads this node, where the type may refuse what serde let pass, as a newtype with a range does.
    pub(super) fn seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Refusal> {
        let (key, place) = (self.key.clone(), self.place.clone());
        seed.deserialize(self).map_err(|refusal| refusal.at(&key, place.as_ref()))
    }

    fn visit<V: Visitor<'a>>(&self, visitor: V) -> Result<V::Value, Refusal> {
        let Some(top) = self.layers.first() else { return visitor.visit_map(Entries::default()) };
        match top.value.get_ref() {
            DeValue::Table(_) => visitor.visit_map(Entries::of(self)),
            DeValue::String(text) => visitor.visit_borrowed_str(text),
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::Integer(value) => visit_integer(value, visitor),
            DeValue::Float(value) => match value.as_str().parse() {
                Ok(value) => visitor.visit_f64(value),
                Err(_) => Err(Refusal::from(Reason::Value(format!("`{value}` is not a number")))),
            },
            DeValue::Datetime(value) => visitor.visit_string(value.to_string()),
            DeValue::Array(list) => {
                let layer = |value| Layer { text: top.text, key: top.key.clone(), value };
                let child = |(i, value)| self.child(format!("{}[{i}]", self.key), vec![layer(value)]);
                visitor.visit_seq(Elements(list.iter().enumerate().map(child).collect::<Vec<_>>().into_iter()))
            }
        }
    }
}

fn visit_integer<'a, V: Visitor<'a>>(value: &DeInteger<'_>, visitor: V) -> Result<V::Value, Refusal> {
    if let Ok(value) = i64::from_str_radix(value.as_str(), value.radix()) {
        return visitor.visit_i64(value);
    }
    match u64::from_str_radix(value.as_str(), value.radix()) {
        Ok(value) => visitor.visit_u64(value),
        Err(_) => Err(Refusal::from(Reason::Value(format!("{value} does not fit into 64 bits")))),
    }
}

impl<'a> Deserializer<'a> for Node<'a> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.note();
        self.visit(visitor).map_err(|refusal| refusal.at(&self.key, self.place.as_ref()))
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.note();
        let variant = Variant::decide(&self, variants);
        variant.and_then(|variant| visitor.visit_enum(variant)).map_err(|r| r.at(&self.key, self.place.as_ref()))
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// The entries of a table, merged.
#[derive(Default)]
struct Entries<'a> {
    rest: std::vec::IntoIter<(&'a str, Node<'a>)>,
    value: Option<Node<'a>>,
}

impl<'a> Entries<'a> {
    fn of(node: &Node<'a>) -> Self {
        Self { rest: node.children().into_iter(), value: None }
    }
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        let Some((name, node)) = self.rest.next() else { return Ok(None) };
        let place = node.layers.first().map(Layer::key_place);
        let parent = node.key.strip_suffix(name).unwrap_or_default().trim_end_matches('.').to_owned();
        self.value = Some(node);
        let key = seed.deserialize(StrDeserializer::new(name));
        key.map(Some).map_err(|refusal: Refusal| refusal.at(&parent, place.as_ref()))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        match self.value.take() {
            Some(node) => node.seed(seed),
            None => Err(serde::de::Error::custom("a value was asked for before its key")),
        }
    }
}

/// The elements of a list.
struct Elements<'a>(std::vec::IntoIter<Node<'a>>);

impl<'a> SeqAccess<'a> for Elements<'a> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        self.0.next().map(|node| node.seed(seed)).transpose()
    }
}
