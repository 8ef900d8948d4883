use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::{
    Session,
    fields::{Field, FieldArgs, compare},
};
use crate::{
    cinder::{Attachment, AttachmentStatus, ListQuery},
    cli::exit::Failure,
    model::{AttachmentId, Secret, VolumeId},
};

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this volume
    #[arg(long, value_name = "UUID", help_heading = "Filters")]
    volume_id: Option<VolumeId>,

    /// Only with this status
    #[arg(
        long,
        visible_alias = "attach-status",
        value_name = "STATUS",
        value_parser = status,
        help_heading = "Filters"
    )]
    status: Option<AttachmentStatus>,

    /// Only with this instance
    #[arg(long, visible_alias = "server-id", value_name = "UUID", help_heading = "Filters")]
    instance_id: Option<Uuid>,

    /// Of all projects; Cinder ignores it unless you are an administrator
    #[arg(
        long,
        visible_alias = "all-projects",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        default_value_t = false,
        action = clap::ArgAction::Set,
        help_heading = "Filters"
    )]
    all_tenants: bool,

    /// Only of this project, by its id; for administrators
    #[arg(long, value_name = "ID", value_parser = project, help_heading = "Filters")]
    project: Option<String>,

    /// How many to ask for at once; by default the cloud's own limit
    #[arg(
        long,
        visible_alias = "limit",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Pages"
    )]
    page_size: Option<u32>,

    /// How many at most in all; by default all
    #[arg(long, value_name = "N", help_heading = "Pages")]
    max_items: Option<usize>,

    /// Only what follows this attachment
    #[arg(long, value_name = "ID", help_heading = "Pages")]
    marker: Option<AttachmentId>,

    /// How many to leave out at the start
    #[arg(long, value_name = "N", help_heading = "Pages")]
    offset: Option<u32>,

    /// Cinder's order: KEY, KEY:asc or KEY:desc, several separated by commas
    #[arg(long, value_name = "KEY[:DIR]", value_parser = sort, help_heading = "Order")]
    sort: Option<String>,

    /// Cinder's order by one key; --sort says the same
    #[arg(long, value_name = "KEY", conflicts_with = "sort", value_parser = sort_key, help_heading = "Order")]
    sort_key: Option<String>,

    /// The direction for --sort-key
    #[arg(long, value_name = "DIR", requires = "sort_key", help_heading = "Order")]
    sort_dir: Option<Direction>,

    /// Sort what came by this field, first things first; may be repeated
    #[arg(long, value_name = "FIELD", value_delimiter = ',', help_heading = "Order")]
    sort_column: Vec<Field>,

    /// Sort by --sort-column upwards, which is the default
    #[arg(
        long,
        requires = "sort_column",
        conflicts_with = "sort_descending",
        help_heading = "Order"
    )]
    sort_ascending: bool,

    /// Sort by --sort-column downwards
    #[arg(long, requires = "sort_column", help_heading = "Order")]
    sort_descending: bool,

    #[command(flatten)]
    fields: FieldArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Asc,
    Desc,
}

/// Cinder answers an unknown status, or several, with nothing.
fn status(text: &str) -> Result<AttachmentStatus, String> {
    match AttachmentStatus::from(text.to_owned()) {
        AttachmentStatus::Other(word) if word != "deleted" => Err(
            "Cinder's attachments are reserved, attaching, attached, detached, error_attaching, error_detaching or deleted; give one"
                .to_owned(),
        ),
        status => Ok(status),
    }
}

fn project(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric()) {
        return Ok(text.to_owned());
    }
    Err("it is not a project's id: expected hex digits".to_owned())
}

fn sort_key(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()) {
        return Ok(text.to_owned());
    }
    Err("expected a key such as id, created_at or attach_status".to_owned())
}

fn sort(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let (key, direction) = part.split_once(':').unwrap_or((part, "desc"));
        sort_key(key)?;
        if !["asc", "desc"].contains(&direction) {
            return Err(format!("the direction {direction:?} is neither asc nor desc"));
        }
    }
    Ok(text.to_owned())
}

impl List {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<(), Failure> {
        let query = self.query();
        let client = session.client()?;
        let is_detail =
            self.fields.need_detail(session.format) || Field::any_detail(&self.sort_column);
        let mut attachments = if is_detail {
            client.detail(&query).await?
        } else {
            let bare =
                |summary| Attachment::new(summary, None, Secret::new(serde_json::Value::Null));
            client.list(&query).await?.into_iter().map(bare).collect()
        };
        if !self.sort_column.is_empty() {
            attachments.sort_by(|a, b| {
                let order = self.sort_column.iter().map(|field| compare(*field, a, b));
                let order = order.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then);
                if self.sort_descending { order.reverse() } else { order }
            });
        }
        self.fields.print_list(session.format, &attachments)
    }

    fn query(&self) -> ListQuery {
        let sort = self.sort_key.as_ref().map(|key| match self.sort_dir {
            Some(Direction::Asc) => format!("{key}:asc"),
            Some(Direction::Desc) | None => format!("{key}:desc"),
        });
        ListQuery {
            volume_id: self.volume_id,
            attach_status: self.status.clone(),
            instance_id: self.instance_id.map(|id| id.to_string()),
            project_id: self.project.clone(),
            all_tenants: self.all_tenants || self.project.is_some(),
            sort: self.sort.clone().or(sort),
            marker: self.marker,
            offset: self.offset,
            page_size: self.page_size,
            limit: self.max_items,
        }
    }
}
