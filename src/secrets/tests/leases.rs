//! Leases, static roles and certificates: renewed, replaced and given back, with paused time.

use crate::ports::SecretControl;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_leased_value_is_replaced_before_it_ends() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = Some(Lease::Ends(Duration::from_secs(3600)));
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    tokio::time::sleep(Duration::from_secs(2000)).await;
    assert_eq!(bench.script.fetches("a"), 1, "refresh does not apply to a lease");
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(bench.script.fetches("a"), 2);
    bench.stop().await;
}

const HOUR: Duration = Duration::from_secs(3600);

fn held() -> Option<Lease> {
    Some(Lease::Held { id: LeaseId::new(String::new()), ttl: HOUR, renewable: true, login: 1 })
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_then_replaced_and_revoked_when_the_overlap_has_passed() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = held();
    // From the last to the first: two whole hours, then the maximum life is near.
    *script.renewals.lock().unwrap() = vec![HOUR / 2, HOUR, HOUR];
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    bench.script.set("a", "two");
    let waiting = tokio::time::timeout(4 * HOUR, async {
        while bench.script.fetches("a") < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    waiting.await.unwrap();
    bench.version("item", 2).await;
    assert!(bench.script.renewals.lock().unwrap().is_empty());
    assert!(bench.script.revoked.lock().unwrap().is_empty(), "the old lease still serves");
    *bench.script.refuses_revocation.lock().unwrap() = true;
    tokio::time::sleep(Duration::from_secs(28)).await;
    assert!(bench.script.revoked.lock().unwrap().is_empty(), "the overlap has not passed");
    tokio::time::sleep(Duration::from_secs(10)).await;
    *bench.script.refuses_revocation.lock().unwrap() = false;
    tokio::time::sleep(Duration::from_secs(40)).await;
    let revoked = bench.script.revoked.lock().unwrap().clone();
    assert!(revoked.len() >= 2 && revoked.iter().all(|lease| lease == "creds/1"), "tried until it works: {revoked:?}");
    let names = bench.audit.names();
    let renewed = "secret.renewed";
    assert_eq!(names, ["secret.fetched", renewed, renewed, renewed, "secret.rotated", "secret.revoked"]);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_is_replaced_at_once_and_one_that_cannot_be_used_is_given_back() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = held();
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    bench.script.set("a", "two");
    tokio::time::sleep(HOUR.mul_f64(0.67)).await;
    bench.version("item", 2).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(*bench.script.revoked.lock().unwrap(), ["creds/1"]);
    *bench.audit.refuses.lock().unwrap() = true;
    bench.script.set("a", "three");
    tokio::time::sleep(HOUR.mul_f64(0.67)).await;
    let revoked = bench.script.revoked.lock().unwrap().clone();
    assert_eq!(revoked[1], "creds/3", "not published, so nobody needs it: {revoked:?}");
    assert!(!revoked.contains(&"creds/2".to_owned()), "it is in use");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_on_although_a_fetch_out_of_turn_failed() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = held();
    *script.renewals.lock().unwrap() = vec![HOUR; 10];
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    bench.script.break_with("a", FailureKind::ServerError);
    for _ in 0..3 {
        let refused = bench.handle.refresh("item").await.unwrap_err().to_string();
        assert_eq!(refused, "secret item: it was server_error");
        tokio::time::sleep(HOUR).await;
    }
    let renewals = 10 - bench.script.renewals.lock().unwrap().len();
    assert!((4..=5).contains(&renewals), "{renewals} renewals in three hours");
    assert_eq!(bench.script.fetches("a"), 4, "the values hold, so nothing else is asked for");
    assert_eq!(bench.condition("secret/item").state, ConditionState::Ok);
    bench.script.set("a", "two");
    assert!(bench.handle.refresh("item").await.unwrap().changed);
    let failed = bench.audit.names().into_iter().filter(|name| *name == "secret.failed").count();
    assert_eq!(failed, 3, "each is on record");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_when_it_comes_is_not_published_and_seldom_asked_for() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = Some(Lease::Ends(Duration::ZERO));
    let bench = Bench::start(script, &[("item", settings("a"))]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let fetches = bench.script.fetches("a");
    assert!((2..=6).contains(&fetches), "{fetches}");
    assert!(bench.condition("secret/item").message.contains("clock"), "{}", bench.condition("secret/item").message);
    *bench.script.lease.lock().unwrap() = Some(Lease::Ends(HOUR));
    bench.version("item", 1).await;
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_static_role_is_fetched_when_the_server_rotates_it() {
    let script = Arc::new(Script::default());
    script.set("a", "one");
    *script.lease.lock().unwrap() = Some(Lease::Rotates(Duration::from_secs(100)));
    let bench = Bench::start(script, &[("item", settings("a"))]);
    bench.version("item", 1).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.script.fetches("a"), 1);
    bench.script.set("a", "two");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bench.value("item"), "two");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leases_are_given_back_at_the_end_where_that_is_wanted() {
    for wanted in [true, false] {
        let script = Arc::new(Script::default());
        script.set("a", "one");
        *script.lease.lock().unwrap() = held();
        let bench = Bench::start(script.clone(), &[("item", settings("a"))]);
        bench.shared.put_roster(Roster {
            providers: bench.handle.roster().providers.clone(),
            items: bench.handle.roster().items.clone(),
            revoke_on_exit: wanted,
        });
        bench.version("item", 1).await;
        bench.stop().await;
        assert_eq!(script.revoked.lock().unwrap().len(), usize::from(wanted));
    }
}
