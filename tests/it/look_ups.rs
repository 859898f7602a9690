//! Look-ups end to end: miss, hit, batch, restart; the same bytes each time.

use crate::support::{DOCUMENTED, DOCUMENTED_ID, TestApp};

#[tokio::test]
async fn the_documentations_task_is_the_same_bytes_on_every_road() {
    let app = TestApp::spawn().await;
    app.upstream.put_raw("producer", "t", DOCUMENTED_ID, DOCUMENTED);

    let miss = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((miss.x_cache(), &miss.body[..]), ("MISS", DOCUMENTED));
    assert_eq!(miss.header("cache-status"), "refrain; fwd=uri-miss; stored");
    let hit = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((hit.x_cache(), &hit.body[..]), ("HIT", DOCUMENTED));
    assert_eq!(hit.header("cache-status"), "refrain; hit");

    let other = app.upstream.create_finished("producer", "t");
    let batch = app.batch("t", &[DOCUMENTED_ID, &other, "unknown", DOCUMENTED_ID]).await;
    assert_eq!(batch.x_cache(), "PARTIAL");
    assert_eq!(batch.json()["count"], 3);
    let text = String::from_utf8_lossy(DOCUMENTED);
    assert_eq!(String::from_utf8_lossy(&batch.body).matches(text.trim()).count(), 2);

    app.upstream.stop().await;
    let app = app.restart().await;
    let after = app.retrieve("t", DOCUMENTED_ID).await;
    assert_eq!((after.x_cache(), &after.body[..]), ("HIT", DOCUMENTED));
}
