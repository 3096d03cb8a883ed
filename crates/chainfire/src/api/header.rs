//! Response headers, as messages and as bytes.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::etcdserverpb as pb;
use rpc::Status;

use super::Api;

impl Api {
    pub(super) fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.handle.cluster().0,
            member_id: self.handle.node().0,
            revision,
            raft_term: self.handle.term(),
        }
    }

    /// The header at the store's present revision.
    pub(super) fn header_now(&self) -> pb::ResponseHeader {
        self.header(self.stores.get().map_or(0, |store| store.reader.current().revision))
    }

    /// A message whose first field is the header, followed by fields that are encoded already.
    pub(super) fn behind_header(&self, revision: i64, fields: &[u8]) -> Bytes {
        let header = self.header(revision);
        let length = header.encoded_len();
        let size = 1 + encoded_len_varint(length as u64) + length + fields.len();
        let mut out = BytesMut::with_capacity(size);
        out.put_u8(1 << 3 | 2);
        encode_varint(length as u64, &mut out);
        header.encode_raw(&mut out);
        out.put_slice(fields);
        out.freeze()
    }
}

/// Encodes a response.
pub fn encode(response: &impl Message) -> Result<Bytes, Status> {
    Ok(response.encode_to_vec().into())
}

/// Reads a request.
pub fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message)
        .map_err(|error| Status::internal(format!("grpc: failed to unmarshal the received message: {error}")))
}
