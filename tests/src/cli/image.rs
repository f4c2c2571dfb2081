//! `image build`, `image list`, `image path`.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::image;
use crate::progress::Terminal;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Image {
    /// Make a container root file system, or find it in the cache; prints its directory
    Build {
        /// Name; hosts see the image at /lab/images/NAME
        name: String,
        /// Debian packages beside the minimal base, separated by blanks or commas
        #[arg(long, default_value = "")]
        packages: String,
    },
    /// Show what is cached
    List,
    /// Print the directory of a cached image
    Path {
        /// Its name
        name: String,
    },
}

impl Image {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode> {
        match self {
            Self::Build { name, packages } => {
                let packages: Vec<String> =
                    packages.split([' ', ',', '\n']).filter(|p| !p.is_empty()).map(str::to_owned).collect();
                let path = image::build(name, &packages, &Terminal::default())?;
                println!("{}", path.display());
            }
            Self::Path { name } => println!("{}", image::path(name)?.display()),
            Self::List => {
                let mut table = Table::new();
                table.load_style(NOTHING);
                table.set_header(["IMAGE", "RECIPE", "PACKAGES"]);
                for image in image::list()? {
                    table.add_row([image.name, image.key, image.packages.join(" ")]);
                }
                println!("{table}");
                let rootfs = image::host_rootfs_path();
                let built = if rootfs.exists() { "" } else { " (not built)" };
                println!("root file system of hosts: {}{built}", rootfs.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
