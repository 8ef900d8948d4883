//! Attachments as they are printed: which fields, in which form, and never a secret unasked.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};

use super::super::{
    Format,
    exit::Failure,
    output::{self, cell},
};
use crate::{cinder::Attachment, model::AccessMode};

/// A field of an attachment, by the API's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Status,
    VolumeId,
    Instance,
    AttachMode,
    AttachedAt,
    DetachedAt,
    ConnectionInfo,
}

impl Field {
    const ALL: [Self; 8] = [
        Self::Id,
        Self::Status,
        Self::VolumeId,
        Self::Instance,
        Self::AttachMode,
        Self::AttachedAt,
        Self::DetachedAt,
        Self::ConnectionInfo,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Status => "status",
            Self::VolumeId => "volume_id",
            Self::Instance => "instance",
            Self::AttachMode => "attach_mode",
            Self::AttachedAt => "attached_at",
            Self::DetachedAt => "detached_at",
            Self::ConnectionInfo => "connection_info",
        }
    }

    const fn header(self) -> &'static str {
        match self {
            Self::Id => "ID",
            Self::Status => "STATUS",
            Self::VolumeId => "VOLUME ID",
            Self::Instance => "INSTANCE",
            Self::AttachMode => "ATTACH MODE",
            Self::AttachedAt => "ATTACHED AT",
            Self::DetachedAt => "DETACHED AT",
            Self::ConnectionInfo => "CONNECTION INFO",
        }
    }

    /// Whether a list has it only in its long form.
    const fn is_detail(self) -> bool {
        match self {
            Self::Id | Self::Status | Self::VolumeId | Self::Instance => false,
            Self::AttachMode | Self::AttachedAt | Self::DetachedAt | Self::ConnectionInfo => true,
        }
    }

    fn value(self, attachment: &Attachment, show_secrets: bool) -> Value {
        let summary = &attachment.summary;
        match self {
            Self::Id => summary.id.to_string().into(),
            Self::Status => summary.status.name().into(),
            Self::VolumeId => summary.volume_id.to_string().into(),
            Self::Instance => summary.instance.clone().into(),
            Self::AttachMode => attachment.mode.map(AccessMode::name).into(),
            Self::AttachedAt => attachment.attached_at.clone().into(),
            Self::DetachedAt => attachment.detached_at.clone().into(),
            Self::ConnectionInfo if show_secrets => {
                attachment.raw_connection_info().expose().clone()
            }
            Self::ConnectionInfo => attachment.shown_connection_info(),
        }
    }
}

impl FromStr for Field {
    type Err = String;

    /// As the API names it, or as a column of another client: `Volume ID`, `Server ID`, `Properties`.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim().to_ascii_lowercase().replace([' ', '-'], "_");
        match name.as_str() {
            "instance_id" | "server_id" => return Ok(Self::Instance),
            "properties" => return Ok(Self::ConnectionInfo),
            _ => {}
        }
        Self::ALL.into_iter().find(|field| field.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            let hint = if ["table", "wide", "json", "yaml", "value"].contains(&name.as_str()) {
                format!("; for the format give -o {name}")
            } else {
                String::new()
            };
            format!("an attachment has no field {text:?}; it has {known}{hint}")
        })
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct FieldArgs {
    /// Only these fields, in this order: id, status, volume_id, instance, attach_mode, attached_at,
    /// detached_at, connection_info
    #[arg(
        short,
        long,
        visible_alias = "column",
        visible_short_alias = 'c',
        value_name = "FIELD",
        value_delimiter = ','
    )]
    fields: Vec<Field>,

    /// Show the connection info whole, with its passwords
    #[arg(long)]
    show_secrets: bool,
}

impl FieldArgs {
    fn chosen(&self, default: &[Field]) -> Vec<Field> {
        if self.fields.is_empty() { default.to_vec() } else { self.fields.clone() }
    }

    fn of_list(&self, format: Format) -> Vec<Field> {
        self.chosen(match format {
            Format::Table | Format::Value => &Field::ALL[..4],
            Format::Wide => &Field::ALL[..7],
            Format::Json | Format::Yaml => &Field::ALL,
        })
    }

    /// Whether a list printed so has anything that only the long form has.
    pub(super) fn need_detail(&self, format: Format) -> bool {
        self.of_list(format).into_iter().any(Field::is_detail)
    }

    fn object(&self, fields: &[Field], attachment: &Attachment) -> Value {
        let value =
            |field: &Field| (field.name().to_owned(), field.value(attachment, self.show_secrets));
        Value::Object(fields.iter().map(value).collect::<Map<_, _>>())
    }

    /// Prints one attachment.
    pub(super) fn print(&self, format: Format, attachment: &Attachment) -> Result<(), Failure> {
        let fields = self.chosen(&Field::ALL);
        if format == Format::Value {
            let values =
                fields.iter().map(|field| cell(&field.value(attachment, self.show_secrets)));
            return Ok(output::write(&values.collect::<Vec<_>>().join("\n"))?);
        }
        let value = self.object(&fields, attachment);
        Ok(output::print(format, &value, || {
            let mut rows = Vec::new();
            for field in fields {
                put_rows(&mut rows, field.name(), &field.value(attachment, self.show_secrets));
            }
            output::table(["FIELD", "VALUE"], rows)
        })?)
    }

    /// Prints many.
    pub(super) fn print_list(
        &self,
        format: Format,
        attachments: &[Attachment],
    ) -> Result<(), Failure> {
        let fields = self.of_list(format);
        let row = |attachment: &Attachment| -> Vec<String> {
            fields.iter().map(|field| cell(&field.value(attachment, self.show_secrets))).collect()
        };
        if format == Format::Value {
            if attachments.is_empty() {
                return Ok(());
            }
            let lines: Vec<String> = attachments.iter().map(|item| row(item).join(" ")).collect();
            return Ok(output::write(&lines.join("\n"))?);
        }
        let values: Vec<Value> =
            attachments.iter().map(|attachment| self.object(&fields, attachment)).collect();
        Ok(output::print(format, &values, || {
            output::table(fields.iter().map(|field| field.header()), attachments.iter().map(row))
        })?)
    }
}

/// One row for a plain value, one for each part of an object.
fn put_rows(rows: &mut Vec<[String; 2]>, name: &str, value: &Value) {
    match value {
        Value::Object(parts) if !parts.is_empty() => {
            for (key, part) in parts {
                put_rows(rows, &format!("{name}.{key}"), part);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let items: Vec<String> = items.iter().map(cell).collect();
            rows.push([name.to_owned(), items.join(", ")]);
        }
        Value::Object(_) | Value::Array(_) => rows.push([name.to_owned(), "-".to_owned()]),
        plain => rows.push([name.to_owned(), cell(plain)]),
    }
}

/// The order of two attachments by one field's text.
pub(super) fn compare(field: Field, a: &Attachment, b: &Attachment) -> std::cmp::Ordering {
    cell(&field.value(a, false)).cmp(&cell(&field.value(b, false)))
}

impl Field {
    /// Whether a sort by these fields needs the long form of a list.
    pub(super) fn any_detail(fields: &[Self]) -> bool {
        fields.iter().any(|field| field.is_detail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_the_names_that_each_client_has_for_them() {
        for (text, field) in [
            ("volume_id", Field::VolumeId),
            ("Volume ID", Field::VolumeId),
            ("Server ID", Field::Instance),
            ("instance-id", Field::Instance),
            ("Properties", Field::ConnectionInfo),
        ] {
            assert_eq!(text.parse(), Ok(field), "{text}");
        }
        let error = "json".parse::<Field>().unwrap_err();
        assert!(error.contains("attach_mode") && error.contains("-o json"), "{error}");
    }
}
