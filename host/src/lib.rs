//! stub

pub mod deadline;
pub mod http;
pub mod sys;
pub mod uds;
pub mod vmm;
