//! A container runtime that answers CRI as told, well or badly.
//!
//! Messages are encoded here by field number, from k8s.io/cri-api's `api.proto`, and not with the
//! client's own declarations, so that a wrong number there is found.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, spawn_local};

/// How the runtime behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers.
    Well,
    /// Answers after this time.
    Slowly(Duration),
    /// Accepts and says nothing.
    Hangs,
    /// Speaks HTTP/2 and never answers a call.
    HangsInCall,
    /// Never answers what sandboxes there are, but all else.
    HangsOnSandboxes,
    /// Sends bytes that are no HTTP/2.
    Garbage,
    /// Closes at once.
    Closes,
    /// Closes in the middle of an answer.
    HalfAnswer,
    /// Answers with bytes that are no message.
    BadMessage,
    /// Is another gRPC service.
    OtherService,
}

/// A container of the fake.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) name: &'static str,
    pub(crate) attempt: u64,
    /// Pod name, namespace, UID; None leaves the kubelet's labels out.
    pub(crate) labels: Option<[&'static str; 3]>,
}

/// A sandbox of the fake: id and pod name, namespace, UID.
pub(crate) struct Sandbox(pub(crate) String, pub(crate) [&'static str; 3]);

#[derive(Default)]
pub(crate) struct Fleet {
    pub(crate) containers: Vec<Container>,
    pub(crate) sandboxes: Vec<Sandbox>,
}

/// What was asked of a fake.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) connections: Cell<usize>,
    pub(crate) calls: Cell<usize>,
}

/// A running fake; dropping it closes everything.
pub(crate) struct FakeCri {
    pub(crate) counters: Rc<Counters>,
    task: AbortHandle,
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeCri {
    /// Listens on `socket`. Needs a `LocalSet`.
    pub(crate) fn listen(socket: &Path, manner: Manner, fleet: Fleet) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let counters = Rc::new(Counters::default());
        let fleet = Rc::new(fleet);
        let count = counters.clone();
        let task = spawn_local(async move {
            // Connections end with the listener.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.connections.set(count.connections.get() + 1);
                connections.spawn_local(connection(stream, manner, fleet.clone(), count.clone()));
            }
        });
        Self {
            counters,
            task: task.abort_handle(),
        }
    }
}

async fn connection(
    mut stream: UnixStream,
    manner: Manner,
    fleet: Rc<Fleet>,
    counters: Rc<Counters>,
) {
    match manner {
        Manner::Closes => return,
        Manner::Garbage => {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            let mut sink = Vec::new();
            let _ = stream.read_to_end(&mut sink).await;
            return;
        }
        Manner::Hangs => return std::future::pending().await,
        _ => {}
    }
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        counters.calls.set(counters.calls.get() + 1);
        if manner == Manner::HalfAnswer {
            begin_answer(respond);
            let halfway = tokio::time::timeout(Duration::from_millis(100), connection.accept());
            let _ = halfway.await;
            return;
        }
        calls.spawn_local(call(request, respond, manner, fleet.clone()));
    }
}

fn begin_answer(mut respond: SendResponse<bytes::Bytes>) {
    let mut stream = respond.send_response(head(), false).unwrap();
    let frame = bytes::Bytes::from_static(&[0, 0, 0, 1, 0, 1, 2, 3]);
    stream.send_data(frame, false).unwrap();
}

fn head() -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

async fn call(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<bytes::Bytes>,
    manner: Manner,
    fleet: Rc<Fleet>,
) {
    match manner {
        Manner::HangsInCall => return std::future::pending().await,
        Manner::Slowly(time) => tokio::time::sleep(time).await,
        _ => {}
    }
    let method = request.uri().path().to_owned();
    if manner == Manner::HangsOnSandboxes && method.ends_with("/ListPodSandbox") {
        return std::future::pending().await;
    }
    let mut body = request.into_body();
    let mut question = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        question.extend_from_slice(&data);
    }
    let answer = match method.as_str() {
        _ if manner == Manner::OtherService => None,
        _ if manner == Manner::BadMessage => Some(vec![0xff; 9]),
        "/runtime.v1.RuntimeService/Version" => Some(text(2, "containerd")),
        "/runtime.v1.RuntimeService/ListContainers" => Some(fleet.containers(&question)),
        "/runtime.v1.RuntimeService/ListPodSandbox" => Some(fleet.sandboxes(&question)),
        "/runtime.v1.RuntimeService/ContainerStatus" => fleet.status(&question),
        _ => None,
    };
    let mut trailers = HeaderMap::new();
    let Ok(mut stream) = respond.send_response(head(), false) else {
        return;
    };
    if let Some(message) = answer {
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&message);
        let _ = stream.send_data(frame.into(), false);
        trailers.insert("grpc-status", "0".parse().unwrap());
    } else {
        trailers.insert("grpc-status", "12".parse().unwrap());
        trailers.insert("grpc-message", "unknown service".parse().unwrap());
    }
    let _ = stream.send_trailers(trailers);
}

impl Fleet {
    /// `ListContainersResponse`
    fn containers(&self, question: &[u8]) -> Vec<u8> {
        let wanted = self
            .containers
            .iter()
            .filter(|container| asks_for(question, &container.id));
        wanted
            .flat_map(|container| field(1, &container.encode()))
            .collect()
    }

    /// `ListPodSandboxResponse`
    fn sandboxes(&self, question: &[u8]) -> Vec<u8> {
        let wanted = self
            .sandboxes
            .iter()
            .filter(|Sandbox(id, [_, _, uid])| asks_for(question, id) || asks_for(question, uid));
        wanted
            .flat_map(|sandbox| field(1, &sandbox.encode()))
            .collect()
    }
}

impl Fleet {
    /// `ContainerStatusResponse`: all containers were OOM-killed.
    fn status(&self, question: &[u8]) -> Option<Vec<u8>> {
        let mut found = self.containers.iter();
        let container = found.find(|container| asks_for(question, &container.id))?;
        let grace = [
            text(1, "io.kubernetes.pod.terminationGracePeriod"),
            text(2, "45"),
        ];
        let status = [
            text(1, &container.id),
            number(3, 2),
            number(6, 1_700_000_000),
            number(7, 137),
            text(10, "OOMKilled"),
            field(13, &grace.concat()),
        ];
        Some(field(1, &status.concat()))
    }
}

/// True for a question without a filter, and for one that names `what`.
fn asks_for(question: &[u8], what: &str) -> bool {
    const FRAME_HEAD: usize = 5;
    question.len() == FRAME_HEAD || question.windows(what.len()).any(|w| w == what.as_bytes())
}

impl Container {
    fn encode(&self) -> Vec<u8> {
        let metadata = [text(1, self.name), number(2, self.attempt)].concat();
        let image = text(1, "registry.example/app:1");
        let mut message = [
            text(1, &self.id),
            text(2, &self.sandbox),
            field(3, &metadata),
            field(4, &image),
            text(5, "sha256:0000"),
            number(6, 2),
            number(7, 1_700_000_000),
        ]
        .concat();
        if let Some([pod, namespace, uid]) = self.labels {
            for (key, value) in [
                ("io.kubernetes.pod.name", pod),
                ("io.kubernetes.pod.namespace", namespace),
                ("io.kubernetes.pod.uid", uid),
                ("io.kubernetes.container.name", self.name),
            ] {
                message.extend(field(8, &[text(1, key), text(2, value)].concat()));
            }
        }
        message.extend(field(
            9,
            &[text(1, "some.annotation"), text(2, "x")].concat(),
        ));
        message
    }
}

impl Sandbox {
    fn encode(&self) -> Vec<u8> {
        let Self(id, [pod, namespace, uid]) = self;
        let metadata = [text(1, pod), text(2, uid), text(3, namespace), number(4, 0)].concat();
        [text(1, id), field(2, &metadata), number(3, 0)].concat()
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(0x80 | u8::try_from(value & 0x7f).unwrap());
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

fn number(tag: u8, value: u64) -> Vec<u8> {
    let mut out = vec![tag << 3];
    varint(value, &mut out);
    out
}

fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn text(tag: u8, content: &str) -> Vec<u8> {
    field(tag, content.as_bytes())
}
