import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import org.postgresql.PGConnection;

/** The JDBC driver through the proxy: server-side statements, batches, cursors by row limit, COPY, cancel. */
public class Jdbc {
    private static int checks = 0;

    private static void check(String what, Object found, Object expected) {
        checks++;
        if (!found.equals(expected)) {
            throw new AssertionError(what + ": found " + found + ", expected " + expected);
        }
    }

    private interface Act {
        void run() throws Exception;
    }

    private static void fails(String what, String state, Act act) throws Exception {
        checks++;
        try {
            act.run();
        } catch (SQLException error) {
            if (state.equals(error.getSQLState())) {
                return;
            }
            throw error;
        }
        throw new AssertionError(what + ": no error");
    }

    private static long number(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(System.getenv("PGHERD_JDBC"))) {
            statements(connection);
            transactions(connection);
            cursors(connection);
            copies(connection);
            cancels(connection);
        }
        try (Connection reader = DriverManager.getConnection(System.getenv("PGHERD_JDBC") + "&readOnly=true")) {
            reader.setAutoCommit(false);
            check("a read-only transaction", number(reader, "SELECT count(*) FROM jdbc_driver") > 0, true);
            fails("a write in it", "25006", () -> reader.createStatement().execute("DELETE FROM jdbc_driver"));
            reader.rollback();
        }
        System.out.println(checks + " checks with JDBC " + org.postgresql.util.DriverInfo.DRIVER_VERSION);
    }

    private static void statements(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("DROP TABLE IF EXISTS jdbc_driver; CREATE TABLE jdbc_driver (id int PRIMARY KEY, val text)");
        }
        // From its fifth use on a statement is prepared on the server.
        String insert = "INSERT INTO jdbc_driver VALUES (?, ?)";
        String select = "SELECT val FROM jdbc_driver WHERE id = ?";
        try (PreparedStatement in = connection.prepareStatement(insert);
                PreparedStatement out = connection.prepareStatement(select)) {
            for (int n = 0; n < 50; n++) {
                in.setInt(1, n);
                in.setString(2, "value " + n);
                check("an insert", in.executeUpdate(), 1);
                out.setInt(1, n);
                try (ResultSet rows = out.executeQuery()) {
                    check("a row", rows.next(), true);
                    check("its value", rows.getString(1), "value " + n);
                }
            }
            for (int n = 100; n < 1100; n++) {
                in.setInt(1, n);
                in.setString(2, "batch");
                in.addBatch();
            }
            check("a batch", in.executeBatch().length, 1000);
        }
        try (PreparedStatement in =
                connection.prepareStatement(
                        "INSERT INTO jdbc_driver VALUES (5000, 'key')", Statement.RETURN_GENERATED_KEYS)) {
            in.executeUpdate();
            try (ResultSet keys = in.getGeneratedKeys()) {
                keys.next();
                check("a returned key", keys.getInt(1), 5000);
            }
        }
    }

    private static void transactions(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate("DELETE FROM jdbc_driver WHERE id < 50");
            Savepoint before = connection.setSavepoint();
            fails("a duplicate", "23505", () -> statement.execute("INSERT INTO jdbc_driver VALUES (5000)"));
            connection.rollback(before);
            check("after the savepoint", number(connection, "SELECT count(*) FROM jdbc_driver WHERE id < 50"), 0L);
        }
        connection.rollback();
        check("after the rollback", number(connection, "SELECT count(*) FROM jdbc_driver WHERE id < 50"), 50L);
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        check("a serializable read", number(connection, "SELECT count(*) FROM jdbc_driver") > 0, true);
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        connection.setAutoCommit(true);
    }

    private static void cursors(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(17);
            int count = 0;
            try (ResultSet rows = statement.executeQuery("SELECT id FROM jdbc_driver WHERE id BETWEEN 100 AND 1099")) {
                while (rows.next()) {
                    count++;
                }
            }
            check("a portal with a row limit", count, 1000);
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    private static void copies(Connection connection) throws Exception {
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        var in = new StringBuilder();
        for (int n = 10_000; n < 15_000; n++) {
            in.append(n).append("\tcopied\n");
        }
        check("COPY in", copy.copyIn("COPY jdbc_driver FROM STDIN", new StringReader(in.toString())), 5000L);
        var out = new StringWriter();
        copy.copyOut("COPY (SELECT id, val FROM jdbc_driver WHERE id >= 10000 ORDER BY id) TO STDOUT", out);
        check("COPY out", out.toString(), in.toString());
    }

    private static void cancels(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            fails("a query past its timeout", "57014", () -> statement.execute("SELECT pg_sleep(30)"));
        }
        check("after it", number(connection, "SELECT 1"), 1L);
    }
}
