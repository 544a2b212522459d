//! The table of VMs.

use std::collections::BTreeSet;

use banger_api::vm::{VmSpec, VmStatus};
use banger_core::change::Settings;
use banger_core::id::Id;
use banger_core::lifecycle::Desired;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Store, StoreError, sql};

/// What a VM is, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Identity.
    pub id: Id,
    /// Name, unique among VMs that are not being removed.
    pub name: String,
    /// What was asked for.
    pub spec: VmSpec,
    /// The image that it was made from.
    pub image_digest: String,
    /// The kernel that it boots.
    pub kernel_digest: String,
    /// 32 lower-case hex digits.
    pub machine_id: String,
    /// Size of the root disk.
    pub disk_bytes: u64,
    /// When it was created.
    pub created_at_ms: u64,
    /// When it is to be stopped and removed, if ever.
    pub expires_at_ms: Option<u64>,
    /// Which disks it shall have, where they have been replaced; see [`Settings::disks`].
    pub disks: Option<String>,
    /// What the daemon wants of it.
    pub desired: Desired,
    /// The request that creates it has not succeeded yet.
    pub unfinished: bool,
    /// Its removal has begun.
    pub deleting: bool,
    /// How it last ended.
    pub last: Option<VmStatus>,
}

impl VmRow {
    /// What of it can be changed.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            spec: self.spec.clone(),
            image_digest: self.image_digest.clone(),
            disk_bytes: self.disk_bytes,
            expires_at_ms: self.expires_at_ms,
            disks: self.disks.clone(),
        }
    }

    /// The same VM with other settings.
    #[must_use]
    pub fn with(self, settings: Settings) -> Self {
        let Settings { spec, image_digest, disk_bytes, expires_at_ms, disks } = settings;
        Self { spec, image_digest, disk_bytes, expires_at_ms, disks, ..self }
    }
}

impl Store {
    /// Every VM, those being removed included, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn all(&self) -> Result<Vec<VmRow>, StoreError> {
        let list = |connection: &Connection| {
            connection
                .prepare("SELECT * FROM vms ORDER BY created_at_ms, id")?
                .query_map([], read_row)?
                .collect::<Result<Vec<_>, _>>()
        };
        list(&self.connection()).map_err(sql("list the VMs in the database"))
    }

    /// Adds a VM.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`] if a VM of that name exists.
    pub fn insert(&self, vm: &VmRow) -> Result<(), StoreError> {
        let done = self.connection().execute(
            "INSERT INTO vms VALUES (:id, :name, :spec, :image_digest, :kernel_digest,
                :machine_id, :disk_bytes, :created_at_ms, :desired, :unfinished, :deleting, :last,
                :expires_at_ms, :disks)",
            named_params! {
                ":id": vm.id.as_str(),
                ":name": vm.name,
                ":spec": json(&vm.spec),
                ":image_digest": vm.image_digest,
                ":kernel_digest": vm.kernel_digest,
                ":machine_id": vm.machine_id,
                ":disk_bytes": to_sql(vm.disk_bytes),
                ":created_at_ms": to_sql(vm.created_at_ms),
                ":desired": vm.desired.as_str(),
                ":unfinished": vm.unfinished,
                ":deleting": vm.deleting,
                ":last": vm.last.as_ref().map(json),
                ":expires_at_ms": vm.expires_at_ms.map(to_sql),
                ":disks": vm.disks,
            },
        );
        match done {
            Ok(_) => Ok(()),
            Err(error) if is_unique_violation(&error) => {
                Err(StoreError::NameTaken(vm.name.clone()))
            }
            Err(error) => Err(sql("add the VM to the database")(error)),
        }
    }

    /// Records what the daemon is about to make of a VM.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_desired(&self, id: &Id, desired: Desired) -> Result<(), StoreError> {
        self.change(
            "UPDATE vms SET desired = ?2 WHERE id = ?1",
            params![id.as_str(), desired.as_str()],
        )
    }

    /// Records what a VM shall be from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn change_settings(&self, id: &Id, settings: &Settings) -> Result<(), StoreError> {
        self.change(
            "UPDATE vms SET spec = ?2, disk_bytes = ?3, expires_at_ms = ?4, image_digest = ?5,
                disks = ?6 WHERE id = ?1",
            params![
                id.as_str(),
                json(&settings.spec),
                to_sql(settings.disk_bytes),
                settings.expires_at_ms.map(to_sql),
                settings.image_digest,
                settings.disks
            ],
        )
    }

    /// Records that the request that created a VM has succeeded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish_creation(&self, id: &Id) -> Result<(), StoreError> {
        self.finish_creations([id])
    }

    /// Records that the request that created several VMs has succeeded: of all of them, or of none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish_creations<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a Id>,
    ) -> Result<(), StoreError> {
        let rows = ids.into_iter().map(|id| (id.as_str(), 0));
        self.change_each("UPDATE vms SET unfinished = ?2 WHERE id = ?1", rows)
    }

    /// Records how a VM ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_end(&self, id: &Id, last: &VmStatus) -> Result<(), StoreError> {
        self.record_ends([(id, last)])
    }

    /// Records how several VMs ended: of all of them, or of none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn record_ends<'a>(
        &self,
        ends: impl IntoIterator<Item = (&'a Id, &'a VmStatus)>,
    ) -> Result<(), StoreError> {
        self.change_each(
            "UPDATE vms SET desired = 'stopped', last = ?2 WHERE id = ?1",
            ends.into_iter().map(|(id, last)| (id.as_str(), json(last))),
        )
    }

    /// Records that a VM's removal has begun; its name is free from now on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark_deleting(&self, id: &Id) -> Result<(), StoreError> {
        self.mark_all_deleting([id])
    }

    /// Records that the removals of several VMs have begun: of all of them, or of none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark_all_deleting<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a Id>,
    ) -> Result<(), StoreError> {
        self.change_each(
            "UPDATE vms SET deleting = 1 WHERE id = ?1",
            ids.into_iter().map(|id| [id.as_str()]),
        )
    }

    /// Forgets a VM. A missing one is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn delete(&self, id: &Id) -> Result<(), StoreError> {
        self.change("DELETE FROM vms WHERE id = ?1", params![id.as_str()])
    }

    /// Names of the VMs made from an image.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn users_of_image(&self, digest: &str) -> Result<Vec<String>, StoreError> {
        self.names("SELECT name FROM vms WHERE image_digest = ? ORDER BY name", digest)
    }

    /// Digests of the images that VMs are made of.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn images_in_use(&self) -> Result<BTreeSet<String>, StoreError> {
        let list = |connection: &Connection| {
            connection
                .prepare("SELECT DISTINCT image_digest FROM vms")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<BTreeSet<String>, _>>()
        };
        list(&self.connection()).map_err(sql("ask the database which images are used"))
    }

    /// Names of the VMs that boot a kernel.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn users_of_kernel(&self, digest: &str) -> Result<Vec<String>, StoreError> {
        self.names("SELECT name FROM vms WHERE kernel_digest = ? ORDER BY name", digest)
    }

    fn names(&self, query: &str, digest: &str) -> Result<Vec<String>, StoreError> {
        let list = |connection: &Connection| {
            connection
                .prepare(query)?
                .query_map([digest], |row| row.get(0))?
                .collect::<Result<Vec<String>, _>>()
        };
        list(&self.connection()).map_err(sql("ask the database who uses it"))
    }

    /// The same change with each of these parameters, in one transaction.
    fn change_each<P: rusqlite::Params>(
        &self,
        statement: &str,
        all: impl Iterator<Item = P>,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let change = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            for params in all {
                transaction.prepare_cached(statement)?.execute(params)?;
            }
            transaction.commit()
        };
        change().map_err(sql("change the VMs in the database"))
    }

    fn change(&self, statement: &str, params: &[&dyn rusqlite::ToSql]) -> Result<(), StoreError> {
        self.connection()
            .execute(statement, params)
            .map(drop)
            .map_err(sql("change the VM in the database"))
    }
}

fn read_row(row: &Row<'_>) -> Result<VmRow, rusqlite::Error> {
    Ok(VmRow {
        id: read_word(row, "id", Id::parse)?,
        name: row.get("name")?,
        spec: read_json(row, "spec")?.ok_or(rusqlite::Error::InvalidQuery)?,
        image_digest: row.get("image_digest")?,
        kernel_digest: row.get("kernel_digest")?,
        machine_id: row.get("machine_id")?,
        disk_bytes: row.get::<_, i64>("disk_bytes")?.unsigned_abs(),
        created_at_ms: row.get::<_, i64>("created_at_ms")?.unsigned_abs(),
        expires_at_ms: row.get::<_, Option<i64>>("expires_at_ms")?.map(i64::unsigned_abs),
        disks: row.get("disks")?,
        desired: read_word(row, "desired", Desired::parse)?,
        unfinished: row.get("unfinished")?,
        deleting: row.get("deleting")?,
        last: read_json(row, "last")?,
    })
}

fn read_word<T>(
    row: &Row<'_>,
    column: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, rusqlite::Error> {
    let text: String = row.get(column)?;
    parse(&text).ok_or_else(|| unreadable(format!("{column} is {text:?}").into()))
}

fn read_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> Result<Option<T>, rusqlite::Error> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| unreadable(error.into())))
        .transpose()
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the API's types have only string keys")
}

/// SQLite's integers are signed. Sizes and times stay far below the limit.
fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn is_unique_violation(error: &rusqlite::Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    extended == Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE)
}

#[cfg(test)]
mod tests {
    use banger_api::vm::VmState;
    use banger_core::lifecycle::fresh;

    use super::*;
    use crate::store::tests_support::any_row as row;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("banger.db")).expect("open");
        (dir, store)
    }

    #[test]
    fn a_vm_comes_back_as_it_went_in() {
        let (_dir, store) = store();
        let mut vm = row("aaaaaaaaaaaa", "web");
        store.insert(&vm).expect("insert");
        assert_eq!(store.all().expect("list"), [vm.clone()]);

        let ended = fresh(VmState::Stopped, 9);
        store.set_desired(&vm.id, Desired::Running).expect("desired");
        store.finish_creation(&vm.id).expect("finish");
        assert_eq!(store.all().expect("list")[0].desired, Desired::Running);
        store.record_end(&vm.id, &ended).expect("end");
        vm.unfinished = false;
        vm.last = Some(ended);
        assert_eq!(store.all().expect("list"), [vm.clone()]);

        vm.spec.cpus = 3;
        vm.disk_bytes += 1;
        vm.expires_at_ms = Some(77);
        vm.image_digest = "sha256:other".to_owned();
        vm.disks = Some("other".to_owned());
        store.change_settings(&vm.id, &vm.settings()).expect("change");
        assert_eq!(store.all().expect("list"), [vm.clone()]);

        store.delete(&vm.id).expect("delete");
        store.delete(&vm.id).expect("delete again");
        assert_eq!(store.all().expect("list"), []);
    }

    #[test]
    fn a_name_is_taken_until_its_vm_is_being_removed() {
        let (_dir, store) = store();
        let (old, new) = (row("aaaaaaaaaaaa", "web"), row("bbbbbbbbbbbb", "web"));
        store.insert(&old).expect("insert");
        assert!(matches!(store.insert(&new), Err(StoreError::NameTaken(name)) if name == "web"));
        store.mark_deleting(&old.id).expect("mark");
        store.insert(&new).expect("insert");
    }

    #[test]
    fn several_vms_change_together() {
        let (_dir, store) = store();
        let vms = [row("aaaaaaaaaaaa", "web"), row("bbbbbbbbbbbb", "db")];
        vms.iter().for_each(|vm| store.insert(vm).expect("insert"));
        let ends = [fresh(VmState::Stopped, 9), fresh(VmState::Failed, 10)];
        store.record_ends(vms.iter().map(|vm| &vm.id).zip(&ends)).expect("ends");
        store.mark_all_deleting(vms.iter().map(|vm| &vm.id)).expect("marks");
        let found = store.all().expect("list");
        assert!(found.iter().all(|vm| vm.deleting && vm.desired == Desired::Stopped));
        assert_eq!(found.into_iter().map(|vm| vm.last.expect("an end")).collect::<Vec<_>>(), ends);
        store.record_ends([]).expect("nothing to record");
    }

    #[test]
    fn users_of_an_image_are_named() {
        let (_dir, store) = store();
        store.insert(&row("bbbbbbbbbbbb", "web")).expect("insert");
        store.insert(&row("aaaaaaaaaaaa", "db")).expect("insert");
        assert_eq!(store.users_of_image("sha256:i").expect("ask"), ["db", "web"]);
        assert_eq!(store.users_of_kernel("sha256:k").expect("ask"), ["db", "web"]);
        assert!(store.users_of_image("sha256:other").expect("ask").is_empty());
        assert_eq!(store.images_in_use().expect("ask"), ["sha256:i".to_owned()].into());
    }
}
