use http_body_util::Full;
use hyper::body::Body as _;
use hyper::client::conn::http2 as client;

use super::super::http::bind;
use super::super::status::tests::sample;
use super::*;
use crate::api::status::Routing;

const DEADLINE: Duration = Duration::from_secs(30);

struct Fixture {
    publish: watch::Sender<Arc<Status>>,
    sender: client::SendRequest<Full<Bytes>>,
}

async fn start(wanted: Wanted) -> Fixture {
    let listener = bind(KEY, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (publish, snapshot) = watch::channel(Arc::new(sample()));
    tokio::spawn(serve(listener, snapshot, wanted));
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = client::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    Fixture { publish, sender }
}

impl Fixture {
    async fn call(&mut self, method: &str, body: Vec<u8>) -> Response<Incoming> {
        let request = Request::post(format!("http://lb/grpc.health.v1.Health/{method}"))
            .header(CONTENT_TYPE, "application/grpc+proto")
            .header("te", "trailers")
            .body(Full::from(body))
            .unwrap();
        let answer = timeout(DEADLINE, self.sender.send_request(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc");
        answer
    }

    /// The whole of an answer: its message and its status.
    async fn whole(&mut self, method: &str, body: Vec<u8>) -> (Vec<u8>, String) {
        let (head, body) = self.call(method, body).await.into_parts();
        let failed = head.headers.contains_key("grpc-status");
        assert_eq!(
            body.is_end_stream(),
            failed,
            "nothing comes after a failure"
        );
        let body = timeout(DEADLINE, body.collect()).await.unwrap().unwrap();
        let trailers = body.trailers().unwrap_or(&head.headers);
        let status = trailers["grpc-status"].to_str().unwrap().to_owned();
        (body.to_bytes().to_vec(), status)
    }

    async fn check(&mut self, service: &str) -> (Option<i32>, String) {
        let (body, status) = self.whole("Check", message::encode_request(service)).await;
        let message = message::decode_response(&body);
        (message.ok().map(|message| message.status), status)
    }
}

fn open() -> Wanted {
    watch::channel(None).1
}

#[tokio::test]
async fn check_answers_for_the_node_and_for_each_service() {
    let mut fixture = start(open()).await;
    assert_eq!(fixture.check("").await, (Some(SERVING), "0".into()));
    assert_eq!(fixture.check("web").await, (Some(SERVING), "0".into()));
    assert_eq!(fixture.check("wbe").await, (None, "5".into()));

    let mut status = sample();
    status.services[0].backends[0].routing = Routing::Draining;
    fixture.publish.send_replace(Arc::new(status.clone()));
    assert_eq!(fixture.check("").await, (Some(SERVING), "0".into()));
    assert_eq!(fixture.check("web").await, (Some(NOT_SERVING), "0".into()));
    status.services[0].backends[0].routing = Routing::Panic;
    fixture.publish.send_replace(Arc::new(status.clone()));
    assert_eq!(fixture.check("web").await, (Some(SERVING), "0".into()));
    status.services[0].backends[0].slots = 0;
    fixture.publish.send_replace(Arc::new(status));
    assert_eq!(
        fixture.check("web").await,
        (Some(NOT_SERVING), "0".into()),
        "weight 0"
    );

    let mut ending = sample();
    ending.node.draining = true;
    fixture.publish.send_replace(Arc::new(ending));
    assert_eq!(fixture.check("").await, (Some(NOT_SERVING), "0".into()));
    assert_eq!(fixture.check("web").await, (Some(NOT_SERVING), "0".into()));
}

#[tokio::test]
async fn what_is_no_call_is_refused_in_its_own_way() {
    let mut fixture = start(open()).await;
    for (method, body, status) in [
        ("Chekc", vec![0; 5], "12"),
        ("Check", Vec::new(), "3"),
        ("Check", b"nonsense".to_vec(), "3"),
        ("Check", vec![1, 0, 0, 0, 0], "12"),
        ("Check", vec![0; 5000], "8"),
    ] {
        let answer = fixture.whole(method, body).await;
        assert_eq!(answer, (Vec::new(), status.to_owned()), "{method}");
    }
    let request = Request::get("http://lb/").body(Full::default()).unwrap();
    let answer = fixture.sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 415);
}

#[tokio::test]
async fn watch_tells_each_change_once() {
    let mut fixture = start(open()).await;
    let mut next = {
        let body = message::encode_request("web");
        let mut stream = fixture.call("Watch", body).await.into_body();
        async move || {
            let frame = timeout(DEADLINE, stream.frame())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            match frame.into_data() {
                Ok(data) => message::decode_response(&data).unwrap().status.to_string(),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    format!("end {}", trailers["grpc-status"].to_str().unwrap())
                }
            }
        }
    };
    assert_eq!(next().await, "1");
    // The same again is no news.
    fixture.publish.send_replace(Arc::new(sample()));
    let mut none = sample();
    none.services.clear();
    fixture.publish.send_replace(Arc::new(none));
    assert_eq!(next().await, "3");
    fixture.publish.send_replace(Arc::new(sample()));
    assert_eq!(next().await, "1");
    let mut ending = sample();
    ending.node.draining = true;
    fixture.publish.send_replace(Arc::new(ending));
    assert_eq!(next().await, "2");
    drop(fixture.publish);
    assert_eq!(next().await, "end 14");
}

#[tokio::test]
async fn list_tells_all_to_those_who_have_the_token() {
    let mut fixture = start(open()).await;
    let (body, status) = fixture.whole("List", vec![0; 5]).await;
    let list: HealthListResponse = message::decode(&body).unwrap();
    let serving = HealthCheckResponse { status: SERVING };
    let wanted = [
        ("".to_owned(), serving.clone()),
        ("web".to_owned(), serving),
    ];
    assert_eq!((list.statuses, &*status), (wanted.into(), "0"));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef").unwrap();
    let token = super::super::token::Token::read(file.path()).unwrap();
    let mut fixture = start(watch::channel(Some(Arc::new(token))).1).await;
    let answer = fixture.whole("List", vec![0; 5]).await;
    assert_eq!(answer, (Vec::new(), "16".to_owned()));
    assert_eq!(fixture.check("").await, (Some(SERVING), "0".into()));
}
