use super::*;
use crate::key::MAX_KEY_BYTES;

fn refusal(transaction: Transaction) -> String {
    transaction.check().unwrap_err().to_string()
}

fn puts(n: usize) -> Transaction {
    (0..n).fold(Transaction::new(), |all, i| all.put(format!("/k/{i}"), "v"))
}

#[test]
fn operations_are_limited_per_list() {
    puts(MAX_OPERATIONS).check().unwrap();
    assert_eq!(
        refusal(puts(MAX_OPERATIONS + 1)),
        "the transaction has 129 operations, the limit is 128"
    );
    let conditions =
        (0..129).fold(Transaction::new(), |all, i| all.when(Compare::absent(format!("/k/{i}"))));
    assert_eq!(refusal(conditions), "the transaction has 129 conditions, the limit is 128");
    let otherwise = (0..129).fold(Transaction::new(), |all, _| all.otherwise_get("/k"));
    assert_eq!(refusal(otherwise), "the transaction has 129 operations, the limit is 128");
    // Both branches full is within the limit: only one is taken.
    (0..128).fold(puts(128), |all, _| all.otherwise_get("/k")).check().unwrap();
}

#[test]
fn the_request_is_limited_in_bytes() {
    let room = MAX_REQUEST_BYTES - OPERATION_OVERHEAD_BYTES - "/k".len();
    Transaction::new().put("/k", vec![0; room]).check().unwrap();
    let too_large = Transaction::new().put("/k", vec![0; room + 1]);
    assert_eq!(refusal(too_large), "the request takes 1572865 bytes, the limit is 1572864");
    // What is compared with counts as well.
    let compared =
        Transaction::new().when(Compare::value("/k", Relation::Equal, vec![0; room + 1]));
    assert!(refusal(compared).starts_with("the request takes"));
}

#[test]
fn keys_are_checked_wherever_they_stand() {
    let long = format!("/{}", "x".repeat(MAX_KEY_BYTES));
    let cases = [
        ("", "key \"\" must begin with '/'"),
        ("a/b", "key \"a/b\" must begin with '/'"),
        ("/a\nb", "key \"/a\\nb\" must not hold control characters"),
        (&long, &format!("key {:?} is longer than 1024 bytes", &long[..80])),
    ];
    for (key, expected) in cases {
        let everywhere = [
            Transaction::new().when(Compare::absent(key)),
            Transaction::new().put(key, ""),
            Transaction::new().delete(key),
            Transaction::new().delete_prefix(key),
            Transaction::new().get(key),
            Transaction::new().otherwise_get(key),
        ];
        for transaction in everywhere {
            assert_eq!(refusal(transaction), expected);
        }
    }
    Transaction::new().put("/", "").put("/ä b", "").check().unwrap();
}

#[test]
fn a_branch_writes_a_key_once() {
    let put = || Transaction::new().put("/a/b", "1");
    let refused = [
        put().put("/a/b", "2"),
        put().delete("/a/b"),
        Transaction::new().delete("/a/b").put("/a/b", "1"),
        put().delete_prefix("/a"),
        Transaction::new().delete_prefix("/a/").put("/a/b", "1"),
    ];
    for transaction in refused {
        assert_eq!(refusal(transaction), "the transaction writes key \"/a/b\" more than once");
    }
    let accepted = [
        put().get("/a/b"),
        put().delete_prefix("/a/b/"),
        put().delete_prefix("/a/c"),
        put().delete("/a"),
        Transaction::new().delete("/a").delete("/a").delete_prefix("/"),
        // Only one branch is taken.
        put().otherwise(Op::Delete { key: "/a/b".to_owned() }),
    ];
    for transaction in accepted {
        transaction.check().unwrap();
    }
}
