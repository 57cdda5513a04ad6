//! Enums in layers: the topmost layer decides the variant, and only layers of the same variant count.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, VariantAccess, Visitor};
use toml::de::DeValue;

use super::layered::{Layer, Node};
use super::refusal::{Reason, Refusal};
use super::text::Place;

/// The variant that was chosen, and what the layers say within it.
pub(super) struct Variant<'a> {
    name: &'a str,
    name_place: Place,
    content: Node<'a>,
}

/// One layer's choice: the name of a variant, where it stands, and the settings within, if any.
type Choice<'a> = (&'a str, Place, Option<Layer<'a>>);

impl<'a> Variant<'a> {
    pub(super) fn decide(node: &Node<'a>, variants: &[&str]) -> Result<Self, Refusal> {
        let mut choices = node.layers.iter().map(|layer| choice(layer, &node.key, variants));
        let Some(top) = choices.next() else { return Err(malformed(&node.key, variants, "nothing")) };
        let (name, name_place, content) = top?;
        let mut layers: Vec<Layer<'a>> = content.into_iter().collect();
        for choice in choices {
            let (below, _, content) = choice?;
            if below != name {
                break;
            }
            layers.extend(content);
        }
        let place = layers.first().map(Layer::place).or_else(|| Some(name_place.clone()));
        let content = Node { key: format!("{}.{name}", node.key), layers, place, places: node.places };
        Ok(Self { name, name_place, content })
    }
}

fn choice<'a>(layer: &Layer<'a>, key: &str, variants: &[&str]) -> Result<Choice<'a>, Refusal> {
    let refuse = |got: &str| malformed(key, variants, got).at(key, Some(&layer.place()));
    match layer.value.get_ref() {
        DeValue::String(name) => Ok((name, layer.place(), None)),
        DeValue::Table(_) => match layer.entries().as_slice() {
            [(name, content)] => Ok((name, content.key_place(), Some(content.clone()))),
            [] => Err(refuse("an empty table")),
            [(first, _), (second, _), ..] => Err(refuse(&format!("both `{first}` and `{second}`"))),
        },
        other => Err(refuse(other.type_str())),
    }
}

fn malformed(key: &str, variants: &[&str], got: &str) -> Refusal {
    let variants = variants.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    Refusal::from(Reason::Value(format!("`{key}` takes exactly one of {variants}; got {got}")))
}

impl<'a> EnumAccess<'a> for Variant<'a> {
    type Error = Refusal;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Self), Refusal> {
        let parent = self.content.key.trim_end_matches(self.name).trim_end_matches('.');
        let variant = seed.deserialize(StrDeserializer::new(self.name));
        let variant = variant.map_err(|r: Refusal| r.at(parent, Some(&self.name_place)))?;
        Ok((variant, self))
    }
}

impl<'a> VariantAccess<'a> for Variant<'a> {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        let Node { key, layers, .. } = &self.content;
        match layers.iter().find_map(|layer| layer.entries().into_iter().next()) {
            Some((name, layer)) => {
                let reason = Reason::UnknownKey { name: name.to_owned(), valid: &[] };
                Err(Refusal::from(reason).at(key, Some(&layer.key_place())))
            }
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Refusal> {
        self.content.seed(seed)
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Refusal> {
        self.content.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'a>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Refusal> {
        self.content.deserialize_any(visitor)
    }
}
