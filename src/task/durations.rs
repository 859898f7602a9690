//! Task durations, learnt from final records: one model for each service, and one for each type of
//! its tasks.

mod model;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

pub use self::model::DurationModel;
use super::Service;

/// Largest number of types over all services. Types come from the upstream. Tasks of further types
/// count for their service only.
const MAX_TYPES: usize = 1000;

/// Longest name of a type in bytes. Tasks of types with longer names count for their service only.
pub(super) const MAX_TYPE_BYTES: usize = 64;

/// Models by service and type, shared between threads.
#[derive(Debug, Default)]
pub struct Durations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Copied on write, so that a snapshot does not change.
    services: HashMap<Service, Arc<ServiceDurations>>,
    /// Number of types over all services.
    types: usize,
    /// Models that changed since they were last taken. An empty type stands for all types.
    changed: HashSet<(Service, Box<str>)>,
}

/// Models of one service.
#[derive(Clone, Debug, Default)]
pub struct ServiceDurations {
    /// All tasks of the service, with and without a type.
    all_types: Arc<DurationModel>,
    by_type: HashMap<Box<str>, Arc<DurationModel>>,
}

/// Models of a service without samples.
static WITHOUT_DATA: LazyLock<Arc<ServiceDurations>> = LazyLock::new(Arc::default);

/// One model in the form in which it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDurations {
    /// Service of the tasks.
    pub service: Service,
    /// Type of the tasks; empty for all tasks of the service.
    pub kind: Box<str>,
    /// Number of samples.
    pub samples: u64,
    /// Weights of the buckets: [`DurationModel::weights`].
    pub weights: Vec<u8>,
}

impl Durations {
    /// Records the duration of a task in seconds, for its service and for its type.
    pub fn record(&self, service: &Service, kind: Option<&str>, seconds: f64) {
        let mut state = self.lock();
        let State { services, types, changed } = &mut *state;
        let durations = Arc::make_mut(services.entry(service.clone()).or_default());
        Arc::make_mut(&mut durations.all_types).record(seconds);
        changed.insert((service.clone(), Box::default()));
        let Some(kind) = kind.filter(|kind| is_type_name(kind)) else { return };
        if let Some(model) = durations.by_type.get_mut(kind) {
            Arc::make_mut(model).record(seconds);
        } else if *types < MAX_TYPES {
            let mut model = DurationModel::default();
            model.record(seconds);
            durations.by_type.insert(kind.into(), Arc::new(model));
            *types += 1;
        } else {
            return;
        }
        changed.insert((service.clone(), kind.into()));
    }

    /// Returns the models of a service, for many estimates in a row. Later samples do not change
    /// them.
    pub fn service(&self, service: &Service) -> Arc<ServiceDurations> {
        self.lock().services.get(service).cloned().unwrap_or_else(|| Arc::clone(&WITHOUT_DATA))
    }

    /// Returns the model of a type, or that of all types of the service if the type has no data.
    pub fn model(&self, service: &Service, kind: Option<&str>) -> Arc<DurationModel> {
        Arc::clone(self.service(service).model(kind))
    }

    /// Returns the models that have changed since the last call, to be saved.
    pub fn take_changed(&self) -> Vec<SavedDurations> {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        let saved = |(service, kind): (Service, Box<str>)| {
            let durations = state.services.get(&service)?;
            let model = match &*kind {
                "" => &durations.all_types,
                name => durations.by_type.get(name)?,
            };
            Some(SavedDurations { samples: model.samples(), weights: model.weights(), service, kind })
        };
        changed.into_iter().filter_map(saved).collect()
    }

    /// Marks models as changed again, after they could not be saved.
    pub fn mark_changed(&self, unsaved: impl IntoIterator<Item = SavedDurations>) {
        self.lock().changed.extend(unsaved.into_iter().map(|saved| (saved.service, saved.kind)));
    }

    /// Adds saved models, in place of those of the same service and type. Damaged ones are ignored,
    /// as are types beyond the bound.
    pub fn load(&self, saved: impl IntoIterator<Item = SavedDurations>) {
        let mut state = self.lock();
        let State { services, types, .. } = &mut *state;
        for SavedDurations { service, kind, samples, weights } in saved {
            let Some(model) = DurationModel::restore(samples, &weights).map(Arc::new) else { continue };
            let is_whole_service = kind.is_empty();
            if !is_whole_service && (!is_type_name(&kind) || *types >= MAX_TYPES) {
                continue;
            }
            let durations = Arc::make_mut(services.entry(service).or_default());
            if is_whole_service {
                durations.all_types = model;
            } else if durations.by_type.insert(kind, model).is_none() {
                *types += 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceDurations {
    /// Returns the model of a type, or that of all types if the type has no data.
    pub fn model(&self, kind: Option<&str>) -> &Arc<DurationModel> {
        let of_type = kind.and_then(|kind| self.by_type.get(kind));
        of_type.filter(|model| model.has_data()).unwrap_or(&self.all_types)
    }
}

/// Whether tasks of a type have a model of their own: 1 to 64 bytes without control characters.
fn is_type_name(name: &str) -> bool {
    (1..=MAX_TYPE_BYTES).contains(&name.len()) && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Service {
        Service::parse(name).unwrap()
    }

    fn record(durations: &Durations, kind: Option<&str>, seconds: f64, count: usize) {
        (0..count).for_each(|_| durations.record(&service("producer"), kind, seconds));
    }

    fn median(durations: &Durations, kind: Option<&str>) -> Option<f64> {
        durations.model(&service("producer"), kind).quantile(0.5).map(f64::round)
    }

    #[test]
    fn type_without_data_uses_the_model_of_the_service() {
        let durations = Durations::default();
        record(&durations, Some("images"), 10.0, 19);
        assert_eq!(median(&durations, Some("images")), None);
        record(&durations, Some("videos"), 300.0, 100);
        let of_service = median(&durations, None);
        assert!(of_service > Some(200.0), "{of_service:?}");
        assert_eq!(median(&durations, Some("images")), of_service);
        record(&durations, Some("images"), 10.0, 1);
        assert!(median(&durations, Some("images")) < Some(15.0));
        assert!(!durations.model(&service("luma"), Some("images")).has_data());
    }

    #[test]
    fn snapshot_of_a_service_does_not_change() {
        let durations = Durations::default();
        record(&durations, Some("images"), 10.0, 30);
        let snapshot = durations.service(&service("producer"));
        record(&durations, Some("images"), 500.0, 300);
        assert!(snapshot.model(Some("images")).quantile(0.5) < Some(15.0));
        assert!(median(&durations, Some("images")) > Some(400.0));
    }

    #[test]
    fn changed_models_are_taken_once_and_load_elsewhere() {
        let durations = Durations::default();
        record(&durations, Some("images"), 10.0, 30);
        record(&durations, None, 100.0, 30);
        let changed = durations.take_changed();
        assert_eq!(changed.len(), 2);
        assert!(durations.take_changed().is_empty());
        durations.mark_changed(changed.clone());
        assert_eq!(durations.take_changed().len(), 2);

        let loaded = Durations::default();
        loaded.load(changed);
        assert!(loaded.take_changed().is_empty());
        for kind in [Some("images"), None] {
            assert_eq!(median(&loaded, kind), median(&durations, kind));
        }
    }

    #[test]
    fn number_and_length_of_types_are_bounded() {
        let durations = Durations::default();
        for index in 0..MAX_TYPES + 10 {
            record(&durations, Some(&format!("type {index}")), 10.0, 1);
        }
        for name in ["", "a\nb", &"x".repeat(65)] {
            record(&durations, Some(name), 10.0, 1);
        }
        let saved = durations.take_changed();
        assert_eq!(saved.len(), MAX_TYPES + 1);
        let whole_service = saved.iter().find(|saved| saved.kind.is_empty()).unwrap();
        assert_eq!(whole_service.samples, (MAX_TYPES + 13) as u64);

        let unusual = |kind: &str| SavedDurations { kind: kind.into(), ..whole_service.clone() };
        durations.load([unusual("one more"), unusual(&"x".repeat(65))]);
        assert_eq!(durations.service(&service("producer")).by_type.len(), MAX_TYPES);
    }

    #[test]
    fn damaged_models_are_ignored() {
        let durations = Durations::default();
        record(&durations, None, 10.0, 30);
        let mut saved = durations.take_changed();
        saved[0].weights[7] ^= 0x40;
        let loaded = Durations::default();
        loaded.load(saved);
        assert_eq!(median(&loaded, None), None);
    }
}
