//! Statistics and snapshots as data, there and back.

use granule_bank::{Bank, BankOptions, BankStats, Budget, Owner, Snapshot};
use granule_device::{Bytes, Device, HostOptions};

#[test]
fn what_a_bank_says_survives_json() {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(4)).capacity(Bytes::kib(64))).unwrap();
    let budget = Budget::new(Bytes::kib(40));
    let bank = Bank::new(device, BankOptions::new().share(&budget)).unwrap();
    let mut range = bank.range(&Owner::new("a \"quoted\" name"), Bytes::kib(16)).unwrap();
    range.fill(1..3).unwrap();
    let charge = bank.charge(&Owner::new("b"), Bytes::new(5)).unwrap();
    let (stats, snapshot) = (bank.stats(), bank.snapshot());
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!((&json["held"], &json["owners"][1]["owner"]), (&8197.into(), &"b".into()));
    assert_eq!(serde_json::from_value::<BankStats>(json).unwrap(), stats);
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
    assert_eq!(snapshot.granules(), 2);
    drop(charge);
}
