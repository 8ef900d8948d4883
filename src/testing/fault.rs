use std::collections::BTreeMap;

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The operation has no effect.
    Before,
    /// A format leaves remains, a login of a killed attachd goes on and has its end later; every other
    /// operation has no effect.
    During,
    /// The operation has its effect, and nobody learns of it.
    After,
}

/// What goes wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ends with an error.
    Error(When),
    /// The first item of a list fails, and the others go on.
    Partial,
    /// The device is in use for a moment.
    Busy,
    /// attachd is killed.
    Crash(When),
    /// The node restarts: the kernel forgets everything, files stay.
    Reboot(When),
    /// It doesn't end until it is cancelled.
    Hang(When),
}

/// Which operations go wrong, by their number.
#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: BTreeMap<usize, Fault>,
    count: usize,
}

impl Faults {
    /// Plans a fault for the operation that comes after `ahead` others.
    pub(super) fn plan(&mut self, ahead: usize, fault: Fault) {
        self.planned.insert(self.count + ahead, fault);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The fault of the next operation.
    pub(super) fn next(&mut self) -> Option<Fault> {
        let fault = self.planned.remove(&self.count);
        self.count += 1;
        fault
    }
}
