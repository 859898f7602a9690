//! Services of the simulated upstream, one row each.
//!
//! The records come from the example bodies in `tests/fixtures/services`, which are those of the
//! vendor's public documentation and clients.

/// Service and what its `POST /{service}/tasks` responds.
pub(super) struct Service {
    pub(super) name: &'static str,
    /// Kind of a task that no call started: the last segment of the path that starts such work.
    pub(super) kind: &'static str,
    pub(super) form: Form,
    /// Error code of the 404 for an unknown id. `None`: `{}` with status 200.
    pub(super) not_found: Option<&'static str>,
    /// `None`: songs with previews and progress.
    pub(super) examples: Option<Examples>,
}

/// Form of the lookups of a service and of their responses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By `id` or `ids`. The record itself, or `{"items":[…],"count":n}`.
    Record,
    /// By `id` or `ids`. `{"task":{…}}`, or `{"items":[…],"total":n}`.
    Envelope,
    /// By `task_id`. Without `action` the flat result, with it a record that contains the result.
    Flat,
    /// By `task_id`, without batches. A failed task is a 504. The first lookup of a result is
    /// charged.
    Charged,
}

/// Example bodies of a service. A record has the ids and times of its task in them.
pub(super) struct Examples {
    pub(super) finished: &'static str,
    pub(super) pending: Pending,
    /// `None`: the finished example with a failed `response`.
    pub(super) failed: Option<&'static str>,
}

/// Record of a task that has not ended.
pub(super) enum Pending {
    Example(&'static str),
    /// The finished example without its end and its `response`.
    WithoutResponse,
    /// The task is unknown until it has ended.
    Unknown,
}

/// Returns the service with this name.
pub(super) fn find(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == name)
}

macro_rules! example {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/services/", $name, ".json"))
    };
}

/// All services, in alphabetical order.
pub(super) static SERVICES: [Service; 27] = [
    service("captcha", "token", example!("captcha/finished"))
        .pending(example!("captcha/pending"))
        .failed(example!("captcha/failed"))
        .form(Form::Charged)
        .not_found("not_found"),
    service("digital-human", "videos", example!("digital-human/finished"))
        .pending(example!("digital-human/pending"))
        .failed(example!("digital-human/failed"))
        .form(Form::Flat)
        .not_found("no_task"),
    service("dreamina", "videos", example!("dreamina/finished")).unknown_until_ended(),
    service("fish", "audios", example!("fish/finished")),
    service("flux", "images", example!("flux/finished")).pending(example!("flux/pending.constructed")),
    service("gemini", "videos", example!("gemini/finished")),
    service("grok", "videos", example!("grok/finished")),
    service("hailuo", "videos", example!("hailuo/finished")).failed(example!("hailuo/failed")),
    service("happyhorse", "videos", example!("happyhorse/finished-timed.constructed"))
        .pending(example!("happyhorse/pending"))
        .failed(example!("happyhorse/failed")),
    service("headshots", "images", example!("headshots/finished")).pending(example!("headshots/pending")),
    service("kling", "videos", example!("kling/finished")).pending(example!("kling/pending.constructed")),
    service("luma", "videos", example!("luma/finished")),
    service("maestro", "videos", example!("maestro/finished"))
        .pending(example!("maestro/pending.constructed"))
        .failed(example!("maestro/failed"))
        .not_found("not_found"),
    service("midjourney", "imagine", example!("midjourney/finished"))
        .pending(example!("midjourney/pending.constructed")),
    service("minimax", "videos", example!("minimax/finished"))
        .pending(example!("minimax/pending"))
        .failed(example!("minimax/failed"))
        .form(Form::Envelope),
    service("nano-banana", "images", example!("nano-banana/finished"))
        .pending(example!("nano-banana/pending.constructed"))
        .failed(example!("nano-banana/failed.constructed")),
    service("openai", "images", example!("openai/finished")).pending(example!("openai/pending.constructed")),
    Service { name: "producer", kind: "audios", form: Form::Record, not_found: None, examples: None },
    service("qrart", "images", example!("qrart/finished")),
    service("qwen-image", "images", example!("qwen-image/finished.constructed"))
        .pending(example!("qwen-image/pending.constructed")),
    service("seedance", "videos", example!("seedance/finished"))
        .pending(example!("seedance/pending.constructed")),
    // `finished.json` is the bare result that the page shows. Clients read a record.
    service("seedream", "images", example!("seedream/finished-record.constructed")),
    service("sora", "videos", example!("sora/finished")),
    service("suno", "audios", example!("suno/finished")).pending(example!("suno/pending.constructed")),
    service("veo", "videos", example!("veo/finished")),
    service("wan", "videos", example!("wan/finished")).pending(example!("wan/pending.constructed")),
    service("webextrator", "render", example!("webextrator/finished.constructed")),
];

/// Returns a service with records by `id` and `{}` for an unknown one.
const fn service(name: &'static str, kind: &'static str, finished: &'static str) -> Service {
    let examples = Examples { finished, pending: Pending::WithoutResponse, failed: None };
    Service { name, kind, form: Form::Record, not_found: None, examples: Some(examples) }
}

impl Service {
    const fn pending(mut self, example: &'static str) -> Self {
        if let Some(examples) = &mut self.examples {
            examples.pending = Pending::Example(example);
        }
        self
    }

    const fn unknown_until_ended(mut self) -> Self {
        if let Some(examples) = &mut self.examples {
            examples.pending = Pending::Unknown;
        }
        self
    }

    const fn failed(mut self, example: &'static str) -> Self {
        if let Some(examples) = &mut self.examples {
            examples.failed = Some(example);
        }
        self
    }

    const fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    const fn not_found(mut self, code: &'static str) -> Self {
        self.not_found = Some(code);
        self
    }
}
