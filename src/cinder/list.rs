use std::collections::BTreeSet;

use reqwest::Method;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{
    Attachment, AttachmentStatus, AttachmentSummary, CinderError, Client, Operation,
    transport::Call,
    wire::{AttachmentsAnswer, Body, WireAttachment, WireSummary},
};
use crate::model::{AttachmentId, VolumeId};

/// Longest list that is read. Each page brings something new, so the pages are bounded too.
const MAX_ITEMS: usize = 100_000;

/// A page this short is the last one. A longer one may have been cut by the cloud's own limit, which
/// it doesn't tell (1000, unless configured), so the next is asked for.
const SURELY_LAST: usize = 10;

/// Which attachments to list, and how. Newest first, where nothing else is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only of this volume.
    pub volume_id: Option<VolumeId>,
    /// Only with this status.
    pub attach_status: Option<AttachmentStatus>,
    /// Only with this instance.
    pub instance_id: Option<String>,
    /// Only of this project; Cinder ignores it unless the caller is an administrator and asks for all
    /// projects.
    pub project_id: Option<String>,
    /// Of all projects; Cinder ignores it unless the caller is an administrator.
    pub all_tenants: bool,
    /// Cinder's sort order, such as `id:asc`.
    pub sort: Option<String>,
    /// Only what follows this one.
    pub marker: Option<AttachmentId>,
    /// How many to leave out at the start.
    pub offset: Option<u32>,
    /// How many to ask for at once; the cloud's own limit where nothing is said.
    pub page_size: Option<u32>,
    /// How many at most.
    pub limit: Option<usize>,
}

/// What both forms of a list have.
trait Listed {
    fn summary(&self) -> &AttachmentSummary;
}

impl Listed for AttachmentSummary {
    fn summary(&self) -> &AttachmentSummary {
        self
    }
}

impl Listed for Attachment {
    fn summary(&self) -> &AttachmentSummary {
        &self.summary
    }
}

impl ListQuery {
    /// Clouds differ in which filters they heed, and ignored filters answer with everything.
    fn admits(&self, summary: &AttachmentSummary) -> bool {
        self.volume_id.is_none_or(|id| id == summary.volume_id)
            && self.attach_status.as_ref().is_none_or(|status| *status == summary.status)
            && self.instance_id.as_ref().is_none_or(|id| summary.instance.as_ref() == Some(id))
    }

    fn pairs(
        &self,
        marker: Option<AttachmentId>,
        page_size: Option<u32>,
    ) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        let mut put = |key, value: Option<String>| pairs.extend(value.map(|value| (key, value)));
        put("volume_id", self.volume_id.map(|id| id.to_string()));
        // `status` is not a filter: it always gives an empty list.
        put("attach_status", self.attach_status.as_ref().map(|status| status.name().to_owned()));
        put("instance_id", self.instance_id.clone());
        put("project_id", self.project_id.clone());
        put("all_tenants", self.all_tenants.then(|| "1".to_owned()));
        put("sort", self.sort.clone());
        put("limit", page_size.map(|n| n.to_string()));
        put("marker", marker.or(self.marker).map(|id| id.to_string()));
        put("offset", self.offset.filter(|_| marker.is_none()).map(|n| n.to_string()));
        pairs
    }
}

impl Client {
    /// Lists attachments without their connection info.
    ///
    /// # Errors
    /// All of [`CinderError`]; [`NotFound`](CinderError::NotFound) where the marker is unknown.
    pub async fn list(&self, query: &ListQuery) -> Result<Vec<AttachmentSummary>, CinderError> {
        self.pages::<WireSummary, _>("/attachments", query).await
    }

    /// Lists attachments with their connection info, passwords included.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn detail(&self, query: &ListQuery) -> Result<Vec<Attachment>, CinderError> {
        self.pages::<WireAttachment, _>("/attachments/detail", query).await
    }

    /// Cinder gives no link to the next page: the last item's id is the marker of the next.
    async fn pages<W, T>(&self, path: &str, query: &ListQuery) -> Result<Vec<T>, CinderError>
    where
        W: DeserializeOwned,
        T: From<W> + Listed,
    {
        let most = query.limit.unwrap_or(usize::MAX);
        let page_size = match (query.page_size, query.limit.and_then(|n| u32::try_from(n).ok())) {
            (Some(size), Some(most)) => Some(size.min(most)),
            (size, most) => size.or(most),
        };
        let page_size = page_size.map(|size| size.max(1));
        let (mut items, mut seen) = (Vec::new(), BTreeSet::new());
        let mut marker = None;
        if most == 0 {
            return Ok(items);
        }
        loop {
            let answer = self
                .transport
                .send(Call {
                    operation: Operation::List,
                    method: Method::GET,
                    path: path.to_owned(),
                    query: query.pairs(marker, page_size),
                    body: Body::None,
                })
                .await?;
            let page: AttachmentsAnswer<W> = answer.json()?;
            let page: Vec<T> = page.attachments.into_iter().map(T::from).collect();
            let Some(last) = page.last().map(|item| item.summary().id) else { return Ok(items) };
            let length = page.len();
            let (before, mut ignored) = (seen.len(), 0);
            for item in page {
                if !seen.insert(item.summary().id) {
                    continue;
                }
                if !query.admits(item.summary()) {
                    ignored += 1;
                    continue;
                }
                items.push(item);
                if items.len() == most {
                    return Ok(items);
                }
            }
            if ignored > 0 {
                warn!(
                    attachments = ignored,
                    "Cinder ignored a filter; left out what was not asked for"
                );
            }
            if seen.len() == before {
                return Err(answer.nonsense("its pages repeat themselves"));
            }
            let asked = page_size.map_or(usize::MAX, |size| size as usize);
            if length < asked.min(SURELY_LAST) {
                return Ok(items);
            }
            if seen.len() > MAX_ITEMS {
                return Err(answer.nonsense(format!("it goes on after {MAX_ITEMS} attachments")));
            }
            marker = Some(last);
        }
    }
}
