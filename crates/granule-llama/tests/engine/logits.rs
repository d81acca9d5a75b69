//! Which logits are there after a call: those behind the last token, until something else was evaluated.

use granule_kv::KvType;
use granule_llama::{Error, TokenId};

use crate::{context, ids, load, tales};

#[test]
fn those_behind_the_last_token_however_it_was_evaluated() {
    let model = load(tales());
    // More than are computed at a time, and more than a batch.
    let tokens: Vec<TokenId> = (300..350).map(TokenId::new).collect();
    for n_batch in [20, 512] {
        let made = || context(&model, 64, n_batch, KvType::F16);
        let mut one = made();
        assert!(matches!(one.logits(), Err(Error::NoLogits)));
        let want = one.eval(&tokens).unwrap().to_vec();
        assert_eq!(one.logits().unwrap(), want);
        let mut all = made();
        let rows = all.eval_all(&tokens).unwrap();
        assert_eq!(rows.len(), 50 * want.len());
        assert_eq!(all.logits().unwrap(), &rows[49 * want.len()..]);
        let mut some = made();
        let mut last = Vec::new();
        some.eval_each(&tokens, 47, &mut |_, row| last = row.to_vec()).unwrap();
        assert_eq!(some.logits().unwrap(), last);
        // Nobody asked for any.
        some.eval_each(&ids([5, 6]), 2, &mut |_, _| panic!("there is no token 2")).unwrap();
        assert!(matches!(some.logits(), Err(Error::NoLogits)));
        assert_eq!(some.tokens().len(), 52);
    }
}

#[test]
fn a_batch_leaves_its_first_sequence_s() {
    let model = load(tales());
    let mut context = context(&model, 64, 8, KvType::F16);
    let (first, second) = (context.first_sequence(), context.add_sequence().unwrap());
    let (short, long) = (ids([1, 300]), ids([301; 20]));
    let rows: Vec<Vec<f32>> =
        context.eval_batch(&[(second, &long), (first, &short)]).unwrap().map(<[f32]>::to_vec).collect();
    assert_ne!(rows[0], rows[1]);
    assert_eq!(context.logits().unwrap(), rows[0]);
}

#[test]
fn what_fails_leaves_those_that_were_there() {
    let model = load(tales());
    let mut context = context(&model, 64, 8, KvType::F16);
    let before = context.eval(&ids([1, 300, 301])).unwrap().to_vec();
    context.cancel_token().cancel();
    assert!(matches!(context.eval(&ids([302; 30])).map(|_| ()), Err(Error::Cancelled)));
    context.cancel_token().reset();
    assert_eq!(context.logits().unwrap(), before);
    // A failure after rows were computed.
    let mut seen = 0;
    let token = context.cancel_token();
    let stopped = context.eval_each(&ids([302; 30]), 0, &mut |_, _| {
        seen += 1;
        token.cancel();
    });
    assert!(matches!(stopped, Err(Error::Cancelled)) && seen == 8, "{seen}");
    context.cancel_token().reset();
    assert_eq!(context.logits().unwrap(), before);
    assert_eq!(context.tokens(), ids([1, 300, 301]));
    let second = context.add_sequence().unwrap();
    assert!(context.eval_batch(&[(second, &ids([5; 65]))]).map(|_| ()).is_err());
    assert_eq!(context.logits().unwrap(), before);
    context.clear().unwrap();
    assert_eq!(context.logits().unwrap(), before);
    assert!(matches!(context.fork().unwrap().logits(), Err(Error::NoLogits)));
}
