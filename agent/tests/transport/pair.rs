//! Two agents' endpoints in one process.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::net::SocketAddr;
use std::path::Path;
use tranship_agent::config::Config;
use tranship_agent::transport::Endpoint;
use tranship_agent::transport::endpoint::Connection;
use tranship_proto::bulk::{BulkContent, BulkOpen};
use tranship_proto::ids::{Epoch, HostName, MigrationId};

/// A connection seen from both ends. Streams are opened by `near`.
pub struct Pair {
    pub near: Connection,
    pub far: Connection,
    // What the connections hang on.
    _endpoints: (Endpoint, Endpoint),
    _files: tempfile::TempDir,
}

impl Pair {
    /// Joined directly.
    pub async fn direct() -> Self {
        Self::over(|address| address).await
    }

    /// Joined by a wire: `wire` gets the address of the far end and answers where to connect to.
    pub async fn over(wire: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (near_config, far_config) = fleet(files.path());
        let near_endpoint = Endpoint::bind(&near_config).unwrap();
        let far_endpoint = Endpoint::bind(&far_config).unwrap();
        let address = wire(far_endpoint.address().unwrap());
        let (near, far) = tokio::join!(near_endpoint.connect(&far_config.host, address), async {
            let incoming = far_endpoint.incoming().await.unwrap();
            far_endpoint.greet(incoming, &far_config.host).await.unwrap()
        });
        Self { near: near.unwrap(), far, _endpoints: (near_endpoint, far_endpoint), _files: files }
    }
}

/// The start of a bulk stream, number `index` of some migration.
pub fn open(index: u16) -> BulkOpen {
    BulkOpen {
        migration: MigrationId(uuid::Uuid::nil()),
        epoch: Epoch(1),
        content: BulkContent::Tree { index, pass: 1 },
    }
}

fn fleet(dir: &Path) -> (Config, Config) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let host = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName(name.try_into().unwrap()),
            SanType::URI(format!("tranship://agent/{name}").try_into().unwrap()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        std::fs::write(dir.join(format!("{name}.pem")), cert).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        let d = dir.display();
        let text = format!(
            "host = '{name}'\nlisten = '127.0.0.1:0'\n[tls]\nca = '{d}/ca.pem'\ncert = '{d}/{name}.pem'\n\
             key = '{d}/{name}.key'\n"
        );
        let path = dir.join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.host, name.parse::<HostName>().unwrap());
        config
    };
    (host("near"), host("far"))
}
