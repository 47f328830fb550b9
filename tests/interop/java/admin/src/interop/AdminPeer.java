package interop;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/** Runs Apache's mqadmin once for each line of its input, words parted by tabs; a line of NUL and the line comes first. */
public final class AdminPeer {
    private AdminPeer() {
    }

    public static void main(String[] arguments) throws Exception {
        System.setErr(System.out);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.printf("%n\0%s%n", line);
            MQAdminStartup.main0(line.split("\t"), null);
        }
        System.out.flush();
        System.exit(0);
    }
}
