//! Models in several files.

use granule_llama::Error;
use granule_llama::gguf::{Gguf, GgufWriter, ShardName, Value, check_shards};
use granule_quant::DType;
use std::path::{Path, PathBuf};

/// A shard with one tensor: its number from 0, how many there are, how many tensors they have together.
fn shard(number: u16, count: u16, tensors: i32, name: &str) -> Gguf {
    let mut w = GgufWriter::new(3).unwrap();
    w.set("split.no", Value::U16(number)).unwrap();
    w.set("split.count", Value::U16(count)).unwrap();
    w.set("split.tensors.count", Value::I32(tensors)).unwrap();
    w.tensor(name, &[1], DType::F32.into(), &[0; 4]).unwrap();
    Gguf::parse(&w.to_bytes()).unwrap()
}

#[test]
fn names() {
    let paths = ShardName::paths_of(Path::new("d/m-00001-of-00003.gguf")).unwrap();
    let expected = ["d/m-00001-of-00003.gguf", "d/m-00002-of-00003.gguf", "d/m-00003-of-00003.gguf"];
    assert_eq!(paths, expected.map(PathBuf::from));
    for alone in
        ["m.gguf", "m-1-of-2.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-00001-of-00002.bin"]
            .into_iter()
            .chain(["m-00001-of-4294967295.gguf", "m-+0001-of-00002.gguf", "00001-of-00002.gguf"])
    {
        assert_eq!(ShardName::paths_of(Path::new(alone)).unwrap(), [PathBuf::from(alone)], "{alone}");
    }
    let error = ShardName::paths_of(Path::new("d/m-00002-of-00003.gguf")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`d/m-00002-of-00003.gguf` is shard 2 of 3; open the first shard, `d/m-00001-of-00003.gguf`"
    );
    // A hyphen and digits in the name itself are the name's.
    let paths = ShardName::paths_of(Path::new("m-00001-of-00002-00001-of-00002.gguf")).unwrap();
    assert_eq!(paths[1], Path::new("m-00001-of-00002-00002-of-00002.gguf"));
}

#[test]
fn files() {
    let paths = ShardName::paths_of(Path::new("m-00001-of-00002.gguf")).unwrap();
    let check = |a: Gguf, b: Gguf| check_shards(&paths, &[a, b]);
    check(shard(0, 2, 2, "a"), shard(1, 2, 2, "b")).unwrap();
    for (a, b, says) in [
        (
            shard(0, 2, 2, "a"),
            shard(0, 2, 2, "b"),
            "m-00002-of-00002.gguf` does not belong here: its `split.no` is 0",
        ),
        (shard(0, 2, 2, "a"), shard(1, 3, 2, "b"), "`split.count` is 3, expected 2"),
        (shard(0, 2, 3, "a"), shard(1, 2, 3, "b"), "`split.tensors.count` is 3, expected 2"),
        (shard(0, 2, 2, "a"), shard(1, 2, 2, "a"), "tensor `a` occurs twice"),
    ] {
        let error = check(a, b).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let unsplit = Gguf::parse(&GgufWriter::new(3).unwrap().to_bytes()).unwrap();
    let error = check(shard(0, 2, 2, "a"), unsplit.clone()).unwrap_err();
    assert!(matches!(&error, Error::MissingKey { key } if key == "split.count"), "{error}");

    let alone = [PathBuf::from("m.gguf")];
    check_shards(&alone, std::slice::from_ref(&unsplit)).unwrap();
    check_shards(&alone, &[shard(0, 1, 1, "a")]).unwrap();
    let error = check_shards(&alone, &[shard(0, 3, 9, "a")]).unwrap_err();
    assert!(matches!(error, Error::ShardName { count: 3, .. }), "{error}");
}
