//! page
use super::TransferReport;
pub(crate) fn page(_report: &TransferReport) -> String {
    String::new()
}
