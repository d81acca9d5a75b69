//! What the library's answers mean, in our own words.

use crate::Error;

/// Code, name as in cublas_api.h, and what it means for the person who must act.
const TABLE: &[(u32, &str, &str)] = &[
    (
        1,
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "the library could not begin: it may be newer than the driver, or the device may be full",
    ),
    (3, "CUBLAS_STATUS_ALLOC_FAILED", "the device, or the host memory that the library needs, is full"),
    (7, "CUBLAS_STATUS_INVALID_VALUE", "an argument is out of range"),
    (8, "CUBLAS_STATUS_ARCH_MISMATCH", "the device's compute capability lacks what the product needs"),
    (11, "CUBLAS_STATUS_MAPPING_ERROR", "memory of the device could not be reached"),
    (13, "CUBLAS_STATUS_EXECUTION_FAILED", "the product, or a part of it, could not be given to the device"),
    (14, "CUBLAS_STATUS_INTERNAL_ERROR", "something inside the library failed"),
    (15, "CUBLAS_STATUS_NOT_SUPPORTED", "the library has no such product"),
    (16, "CUBLAS_STATUS_LICENSE_ERROR", "the library found no valid licence"),
];

/// The library's answer to `call` as a result.
pub(super) fn check(call: &'static str, code: u32) -> Result<(), Error> {
    if code == 0 {
        return Ok(());
    }
    let known = TABLE.iter().find(|&&(known, ..)| known == code);
    let (name, explanation) = known.map_or(
        (
            "an error",
            "cublas_api.h of a newer toolkit knows the code, this version of granule-device does not",
        ),
        |&(_, name, explanation)| (name, explanation),
    );
    Err(Error::Cublas { call, code, name, explanation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_said_in_words() {
        assert!(TABLE.is_sorted_by_key(|&(code, ..)| code));
        check("cublasCreate_v2", 0).unwrap();
        let said = check("cublasGemmEx", 15).unwrap_err().to_string();
        assert_eq!(
            said,
            "cublasGemmEx failed: CUBLAS_STATUS_NOT_SUPPORTED (15): the library has no such product"
        );
        assert!(check("cublasGemmEx", 4242).unwrap_err().to_string().contains("an error (4242)"));
    }
}
