//! What NCCL's answers mean, in our own words.

use crate::Error;

/// `ncclInProgress`: a call that does not block is not through.
pub(super) const IN_PROGRESS: u32 = 7;

/// Code, name as in nccl.h, and what it means for the person who must act.
const TABLE: &[(u32, &str, &str)] = &[
    (1, "ncclUnhandledCudaError", "a call into CUDA failed inside the library"),
    (
        2,
        "ncclSystemError",
        "the system refused: sockets, shared memory or host memory; NCCL_DEBUG=WARN says more",
    ),
    (3, "ncclInternalError", "something inside the library failed; NCCL_DEBUG=WARN says more"),
    (4, "ncclInvalidArgument", "an argument is out of range, or ranks do not agree"),
    (5, "ncclInvalidUsage", "ranks share a device, or a call is not allowed here"),
    (6, "ncclRemoteError", "another rank is gone, or cannot be reached any more"),
    (IN_PROGRESS, "ncclInProgress", "the other ranks have not come"),
];

/// The library's answer to `call` as a result: whether it is through.
pub(super) fn check(call: &'static str, code: u32) -> Result<bool, Error> {
    match code {
        0 => Ok(true),
        IN_PROGRESS => Ok(false),
        _ => Err(error(call, code)),
    }
}

pub(super) fn error(call: &'static str, code: u32) -> Error {
    let known = TABLE.iter().find(|&&(known, ..)| known == code);
    let (name, explanation) = known.map_or(
        ("an error", "nccl.h of a newer version knows the code, this version of granule-device does not"),
        |&(_, name, explanation)| (name, explanation),
    );
    Error::Nccl { call, code, name, explanation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_said_in_words() {
        assert!(TABLE.is_sorted_by_key(|&(code, ..)| code));
        assert!(check("ncclSend", 0).unwrap() && !check("ncclGroupEnd", 7).unwrap());
        let said = check("ncclSend", 6).unwrap_err().to_string();
        assert_eq!(
            said,
            "ncclSend failed: ncclRemoteError (6): another rank is gone, or cannot be reached any more"
        );
        assert!(check("ncclSend", 4242).unwrap_err().to_string().contains("an error (4242)"));
    }
}
