//! What clients of the REST API send as bodies, as its handlers take them. Which operations take what else, and what
//! comes of it, is tried on a running controller.

use serde::Serialize;
use serde::de::DeserializeOwned;
use stor_api::objects;
use stor_controller::rest;

/// Longest that is said about a body, bytes.
const MOST_SAID: usize = 4 * 512;

/// As each of the objects that any operation takes.
pub(crate) fn bodies(input: &[u8]) {
    body::<objects::NodeSpec>(input);
    body::<objects::NodeChange>(input);
    body::<objects::PoolSpec>(input);
    body::<objects::PoolChange>(input);
    body::<objects::ClassSpec>(input);
    body::<objects::VolumeSpec>(input);
    body::<objects::SnapshotsSpec>(input);
    body::<objects::RestoreSpec>(input);
    body::<objects::VolumeAdoption>(input);
    body::<objects::AttachmentSpec>(input);
}

fn body<T: DeserializeOwned + Serialize + PartialEq>(input: &[u8]) {
    match rest::body::<T>(input) {
        Ok(object) => {
            let again = serde_json::to_vec(&object).ok();
            let same = again.and_then(|bytes| rest::body::<T>(&bytes).ok());
            assert!(same == Some(object), "a body does not come back");
        }
        Err(problem) => {
            assert!(matches!(problem.status, 400 | 422), "status {}", problem.status);
            let said = problem.title.len() + problem.detail.len() + problem.remedy.len();
            assert!((1..=MOST_SAID).contains(&said), "{said} bytes are said");
        }
    }
}
